"""Frames as rows of a queue's database: from ``ase.Atoms`` to a row, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.core import convert_str_to_int_float_bool_or_str
from ase.db.row import AtomsRow

from ..errors import FrameError, InputError
from ..files.extxyz import FrameText, format_atoms, to_nine
from ._oracle_settings import Labels

__all__ = [
    "QUEUE_ID", "STATES", "Claim", "Entry", "digest", "format_row", "make_row", "pick_searchable", "read_entry",
    "read_source", "restore", "to_line", "to_plain",
]  # fmt: skip

QUEUE_ID = "queue_id"  # key of an exported frame, by which labels that were made elsewhere come back
STATES = ("waiting", "running", "done", "failed", "quarantined")


@dataclass(frozen=True)
class Claim:
    """The right of one worker to label one frame, until it expires.

    Parameters
    ----------
    id
        Number of the frame in the queue.
    worker
        Name of the worker.
    token
        A random text, by which this claim differs from all others of the same frame.
    tries
        How often the frame was claimed, this time included.
    atoms
        The frame, without a calculator.
    """

    id: int
    worker: str
    token: str
    tries: int
    atoms: Any


@dataclass(frozen=True)
class Entry:
    """What a queue knows of a frame.

    Parameters
    ----------
    id
        Its number in the queue.
    state
        One of `STATES`.
    tries
        How often it was claimed since it was added, or since `retry`.
    worker
        Name of the worker that has it, or had it last.
    reason
        Why the last try failed; empty once the frame is done.
    added, changed
        When it was added, and when its state changed last: seconds since 1970.
    seconds
        How long the label took; None while there is none.
    formula, natoms
        Its chemical formula, and how many atoms it has.
    digest
        Hash of elements, cell, periodicity and positions.
    source
        Where it came from: the keywords of `add`, and the keys of a saved frame (run, step, dH_max, ...).
    history
        What failed, and what was done about it, oldest first: `at` (seconds since 1970), `what`, `worker`, `reason`.
    record
        The record of the oracle, once the frame is done.
    """

    id: int
    state: str
    tries: int
    worker: str
    reason: str
    added: float
    changed: float
    seconds: float | None
    formula: str
    natoms: int
    digest: str
    source: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    record: dict[str, Any]


def digest(atoms: Atoms) -> str:
    """Return a hash of elements, cell, periodicity and positions: 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    # Adding zero makes 0 of -0, which is the same place.
    for values in (np.asarray(atoms.cell) + 0.0, atoms.positions + 0.0):
        hashed.update(values.astype("<f8").tobytes())
    hashed.update(np.asarray(atoms.pbc, dtype=np.uint8).tobytes())
    hashed.update(atoms.numbers.astype("<i8").tobytes())
    return hashed.hexdigest()


# -- from a frame to a row ---------------------------------------------------------------------------------------------

# Arrays that ase.db returns unchanged on any backend. It cuts integers to 32 bits, and other arrays may lose their
# shape: these go into the `data` of the row.
_KEPT_BY_ASE = ("numbers", "positions", "momenta")

# Keys of a frame's info, and of its source, that `ase db` can show and search for.
_SEARCHABLE = ("run", "step", "event", "band", "dH_max", "generation")


def make_row(atoms: Atoms, labels: Labels | None = None, code: str = "") -> tuple[AtomsRow, dict[str, Any]]:
    """Return the row of a frame, and its `data`: all that ase.db would drop.

    Raises
    ------
    FrameError
        The frame has no atoms, or its positions or cell are not finite.
    InputError
        Its info holds something that a database cannot hold.
    """
    if len(atoms) == 0:
        raise FrameError("a frame without atoms cannot be labelled")
    if not (np.isfinite(atoms.positions).all() and np.isfinite(np.asarray(atoms.cell)).all()):
        raise FrameError("a frame whose positions or cell are not finite cannot be labelled")
    bare = atoms.copy()
    if labels is not None:
        bare.calc = SinglePointCalculator(bare, energy=labels.energy, forces=labels.forces, stress=labels.stress)
        bare.calc.name = code or "unknown"
    row = AtomsRow(bare)
    row.unique_id = digest(atoms)
    arrays = {name: values for name, values in atoms.arrays.items() if name not in _KEPT_BY_ASE}
    data: dict[str, Any] = {"arrays": {}, "info": {}, "dtypes": {}}
    for group, content in (("arrays", arrays), ("info", atoms.info)):
        for key, value in content.items():
            if not isinstance(key, str):
                raise InputError(f"the {group} of a frame must have names, not {key!r}")
            if isinstance(value, np.ndarray) and value.ndim:
                data["dtypes"][f"{group}/{key}"] = value.dtype.str
            data[group][key] = (
                _to_array(value) if isinstance(value, np.ndarray) and value.ndim else to_plain(value, key)
            )
    return row, data


def _to_array(values: np.ndarray[Any, Any]) -> Any:
    if values.dtype.kind not in "biufUO":
        raise InputError(f"an array of {values.dtype} cannot be kept in a database")
    return values if values.dtype.kind in "biuf" else to_plain(values.tolist(), "an array")


def read_source(atoms: Atoms) -> dict[str, Any]:
    """Return what the info of a saved frame says of where it came from."""
    return {key: to_plain(atoms.info[key], key) for key in _SEARCHABLE if key in atoms.info}


def pick_searchable(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys and values of a source by which `ase db` finds the frame."""
    found: dict[str, Any] = {}
    for key in _SEARCHABLE:
        value = source.get(key)
        if isinstance(value, str):
            found[key] = to_line(value)
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and np.isfinite(value)):
            found[key] = value
    return found


def to_plain(value: Any, name: str) -> Any:
    """Return a value as JSON can hold it: numbers, truth values, texts, and lists and dictionaries of these.

    Raises
    ------
    InputError
        It is something else.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        # PostgreSQL takes neither half of a pair of surrogates nor a zero.
        return value.encode("utf-8", "replace").decode().replace("\0", "?")
    if isinstance(value, (list, tuple)):
        return [to_plain(item, name) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {to_plain(key, name): to_plain(item, name) for key, item in value.items()}
    raise InputError(
        f"{name}: {type(value).__name__} cannot be kept in a database: numbers, texts, lists and arrays can"
    )


def to_line(text: str, most: int = 200) -> str:
    """Return a text as a value that ase.db accepts: one line, not too long, and not like a number."""
    line = " ".join(to_plain(text, "a text").split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return line if line and isinstance(convert_str_to_int_float_bool_or_str(line), str) else f"'{line}'"


# -- from a row to a frame ---------------------------------------------------------------------------------------------


def restore(row: AtomsRow) -> Atoms:
    """Return the frame of a row, with its labels in a ``SinglePointCalculator`` if it has any."""
    data = row.data
    if not (np.isfinite(row.positions).all() and np.isfinite(row.cell).all()):
        raise ValueError("its positions or its cell are not finite")
    atoms = Atoms(row.numbers, row.positions.copy(), cell=row.cell, pbc=row.pbc, constraint=row.constraints)
    if "momenta" in row:
        atoms.set_array("momenta", np.array(row.momenta, dtype=np.float64), shape=(3,))
    for name in data["arrays"]:
        atoms.set_array(name, np.array(data["arrays"][name], dtype=data["dtypes"][f"arrays/{name}"]))
    for name, value in data["info"].items():
        dtype = data["dtypes"].get(f"info/{name}")
        atoms.info[name] = value if dtype is None else np.array(value, dtype=dtype)
    if "energy" in row or row.state == "done":
        results = {name: row[name] for name in ("energy", "forces", "stress") if name in row}
        if row.state == "done":
            Labels(**results)  # raises if they are not finite, or no labels
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.calc.name = row.get("calculator", "unknown")
    return atoms


_LABELS = ("energy", "free_energy", "forces", "stress")


def format_row(row: AtomsRow, with_id: bool = False, names: Mapping[str, str] | None = None) -> bytes:
    """Return the frame of a row as extended XYZ: with its labels, all else as it was added, and its id if asked for.

    `names` says what labels are called; "virial" among them adds −stress times volume, in eV.
    """
    atoms, names = restore(row), {} if names is None else names
    labels: dict[str, Any] = {} if atoms.calc is None else dict(atoms.calc.results)
    if "stress" in labels:
        labels["stress"] = to_nine(labels["stress"])
        if "virial" in names:
            labels["virial"] = -atoms.get_volume() * np.asarray(labels["stress"])
    text = row.data.get("text")
    if not text:
        bare = atoms.copy()
        bare.calc = None
        text = format_atoms(bare).decode()
    forces = labels.pop("forces", None)
    columns = {} if forces is None else {names.get("forces", "forces"): np.asarray(forces)}
    keys = {names.get(name, name): value for name, value in labels.items()}
    if with_id:
        keys[QUEUE_ID] = row.id
    return b"".join(FrameText(text).format(columns, keys, (*_LABELS, *names.values())))


def read_entry(row: AtomsRow) -> Entry:
    """Return what a queue knows of the frame of a row."""
    queue = row.data["queue"]
    history = tuple(dict(event) for event in queue["history"])
    reasons = [event["reason"] for event in history if event["reason"]]
    return Entry(
        id=row.id,
        state=STATES[STATES.index(row.state)],
        tries=int(row.tries),
        worker=queue["worker"],
        reason=reasons[-1] if reasons and row.state != "done" else "",
        added=queue["added"],
        changed=float(row.changed),
        seconds=row.get("seconds"),
        formula=row.formula,
        natoms=row.natoms,
        digest=row.unique_id,
        source=dict(queue["source"]),
        history=history,
        record=dict(queue["record"]),
    )
