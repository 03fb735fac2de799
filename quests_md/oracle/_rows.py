"""Frames as rows of an ``ase.db``, such that nothing of a frame is lost."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.core import convert_str_to_int_float_bool_or_str
from ase.db.row import AtomsRow

from ..errors import FrameError, InputError
from ._labels import Labels

__all__ = ["digest", "make_row", "pairs_of", "plain", "restore", "searchable", "word"]

# What of a frame's info and source `ase db` can show and search for.
_SEARCHABLE = ("run", "step", "event", "band", "dH_max", "generation")

# What ase.db gives back as it was, on any backend; integers are cut to 32 bits, and other arrays may lose their shape.
_KEPT_BY_ASE = ("numbers", "positions", "momenta")


def digest(atoms: Atoms) -> str:
    """Return what is the same for the same elements, cell, periodicity and positions: 32 hexadecimal digits."""
    hashed = hashlib.blake2b(digest_size=16)
    # Adding zero makes 0 of -0, which is the same place.
    for values in (np.asarray(atoms.cell) + 0.0, atoms.positions + 0.0):
        hashed.update(values.astype("<f8").tobytes())
    hashed.update(np.asarray(atoms.pbc, dtype=np.uint8).tobytes())
    hashed.update(atoms.numbers.astype("<i8").tobytes())
    return hashed.hexdigest()


def make_row(atoms: Atoms, labels: Labels | None = None, code: str = "") -> tuple[AtomsRow, dict[str, Any]]:
    """Return the row of a frame, and what goes into its `data`: all that ase.db would drop.

    Raises
    ------
    FrameError
        The frame has no atoms, or its positions or cell are not finite.
    InputError
        Its info holds what a database cannot.
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
            data[group][key] = _array(value) if isinstance(value, np.ndarray) and value.ndim else plain(value, key)
    return row, data


def _array(values: np.ndarray[Any, Any]) -> Any:
    if values.dtype.kind not in "biufUO":
        raise InputError(f"an array of {values.dtype} cannot be kept in a database")
    return values if values.dtype.kind in "biuf" else plain(values.tolist(), "an array")


def restore(row: AtomsRow) -> Atoms:
    """Return the frame of a row, with its labels in a ``SinglePointCalculator`` if it has any."""
    data = row.data
    atoms = Atoms(row.numbers, row.positions.copy(), cell=row.cell, pbc=row.pbc, constraint=row.constraints)
    if "momenta" in row:
        atoms.set_array("momenta", np.array(row.momenta, dtype=np.float64), shape=(3,))
    for name in data["arrays"]:
        atoms.set_array(name, np.array(data["arrays"][name], dtype=data["dtypes"][f"arrays/{name}"]))
    for name, value in data["info"].items():
        dtype = data["dtypes"].get(f"info/{name}")
        atoms.info[name] = value if dtype is None else np.array(value, dtype=dtype)
    if "energy" in row:
        results = {name: row[name] for name in ("energy", "forces", "stress") if name in row}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.calc.name = row.get("calculator", "unknown")
    return atoms


def pairs_of(atoms: Atoms) -> dict[str, Any]:
    """Return what the info of a saved frame says of where it came from."""
    return {key: plain(atoms.info[key], key) for key in _SEARCHABLE if key in atoms.info}


def searchable(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pairs of key and value by which `ase db` finds a frame."""
    found: dict[str, Any] = {}
    for key in _SEARCHABLE:
        value = source.get(key)
        if isinstance(value, str):
            found[key] = word(value)
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and np.isfinite(value)):
            found[key] = value
    return found


def word(text: str, most: int = 200) -> str:
    """Return a text as ase.db takes it for a value: one line, not too long, and nothing that looks like a number."""
    line = " ".join(plain(text, "a text").split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    return line if line and isinstance(convert_str_to_int_float_bool_or_str(line), str) else f"'{line}'"


def plain(value: Any, what: str) -> Any:
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
        return [plain(item, what) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {plain(key, what): plain(item, what) for key, item in value.items()}
    raise InputError(
        f"{what}: {type(value).__name__} cannot be kept in a database: numbers, texts, lists and arrays can"
    )
