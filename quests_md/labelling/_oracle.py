"""What an oracle is told, what it answers, and how frames with labels are rows of a database."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db.core import convert_str_to_int_float_bool_or_str
from ase.db.row import AtomsRow
from numpy.typing import NDArray

from ..errors import FrameError, InputError
from ..toml import Seconds, make_settings, read_toml

__all__ = [
    "FOLDER",
    "STATES",
    "Claim",
    "Entry",
    "Labels",
    "Oracle",
    "built",
    "check_call",
    "check_path",
    "digest",
    "filled",
    "load",
    "make_row",
    "pairs_of",
    "plain",
    "restore",
    "searchable",
    "word",
]

FOLDER = "{folder}"
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def check_path(value: str, name: str) -> str:
    """Return an import path, "module:name"; `ValueError` if it is none."""
    if not _PATH.fullmatch(value):
        raise ValueError(f'{name} must be an import path such as "ase.calculators.emt:EMT", not {value!r}')
    return value


def check_call(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a table whose `call` is an import path, or None; `ValueError` if it is none."""
    if table is not None:
        check_path(str(table.get("call", "")), "call")
    return table


def load(path: str) -> Any:
    """Return what an import path names."""
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def filled(value: Any, folder: str) -> Any:
    """Return settings with their `{folder}` filled in."""
    if isinstance(value, str):
        return value.replace(FOLDER, folder)
    if isinstance(value, Mapping):
        return {key: filled(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [filled(item, folder) for item in value]
    return value


def built(value: Any) -> Any:
    """Return settings with their tables that have a key `call` called with the other keys, the inner ones first."""
    if isinstance(value, list):
        return [built(item) for item in value]
    if isinstance(value, dict):
        made = {key: built(item) for key, item in value.items()}
        return load(str(made.pop("call")))(**made) if "call" in made else made
    return value


def _import_path(value: str) -> str:
    return check_path(value, "calculator")


_Calculator = Annotated[str, pydantic.AfterValidator(_import_path)]
_Limit = Annotated[float, pydantic.Field(gt=0)]


class Oracle(pydantic.BaseModel):
    """An ASE calculator by its import path, and what its labels must be to be believed.

    Attributes
    ----------
    calculator
        "module:Class", or anything in a module that makes a calculator when it is called.
    keywords
        What it is called with. A table that has a key `call` is itself called, with its other keys: the profiles
        of ASE are made so. `{folder}` in a text becomes the scratch folder of the frame.
    environment
        Variables set for the process that calculates. Default: one thread.
    stress
        Ask for the stress where the frame is periodic in three directions and the calculator implements it.
    wall_time
        Seconds, or "hh:mm:ss", that a frame may take; then its calculation is killed.
    max_force
        Largest force on an atom (eV/Å) that is believed. A frame with a larger one, or with a label that is no finite
        number, is quarantined.
    energy_tolerance, force_tolerance
        How far labels may be from the stored ones when a frame is labelled again: eV/atom, and eV/Å in each component.
    scratch
        Folder in which each calculation gets a folder of its own, its working folder. Default: the system's for
        temporary files.
    keep
        Keep those of successful calculations, too. What a calculation that fails has written is always kept.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    calculator: _Calculator
    keywords: dict[str, pydantic.JsonValue] = {}  # dates, which TOML knows, are none
    environment: dict[str, str] = {"OMP_NUM_THREADS": "1"}
    stress: bool = True
    wall_time: Seconds = 3600.0
    max_force: _Limit = 50.0
    energy_tolerance: _Limit = 1e-3
    force_tolerance: _Limit = 0.01
    scratch: str | None = None
    keep: bool = False

    @classmethod
    def read(cls, path: str | Path) -> Oracle:
        """Read the TOML file of an oracle.

        Raises
        ------
        ConfigError
            No such file, no TOML, a key that does not exist, or a wrong value.
        """
        return make_settings(cls, read_toml(path), str(path))

    @property
    def settings(self) -> dict[str, Any]:
        """What labels depend on; labels of other settings are those of another oracle."""
        return {"calculator": self.calculator, "keywords": self.keywords}


STATES = ("waiting", "running", "done", "failed", "quarantined")


@dataclass(frozen=True, eq=False)
class Labels:
    """What an oracle says of a frame, in ASE's units and signs.

    Parameters
    ----------
    energy
        In eV.
    forces
        (n, 3), in eV/Å.
    stress
        (6,), in eV/Å³, in Voigt's order; None where there is none.

    Raises
    ------
    InputError
        A value is not finite, or an array has another shape.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        forces = np.asarray(self.forces, dtype=np.float64)
        if forces.ndim != 2 or forces.shape[1] != 3:
            raise InputError(f"the forces of a label must have shape (n, 3), not {forces.shape}")
        stress = None if self.stress is None else np.asarray(self.stress, dtype=np.float64)
        if stress is not None and stress.shape != (6,):
            raise InputError(f"the stress of a label must have shape (6,), not {stress.shape}")
        values = {"energy": np.asarray(self.energy, dtype=np.float64), "forces": forces, "stress": stress}
        for name, value in values.items():
            if value is not None and not np.isfinite(value).all():
                raise InputError(f"the {name} of a label must be finite")
        object.__setattr__(self, "energy", float(self.energy))
        object.__setattr__(self, "forces", forces)
        object.__setattr__(self, "stress", stress)


@dataclass(frozen=True)
class Claim:
    """The right of one worker to label one frame, until it expires.

    Parameters
    ----------
    id
        Of the frame in the queue.
    worker
        Who has it.
    token
        Tells this claim from any other one of the same frame.
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
    """What is known of a frame in a queue.

    Parameters
    ----------
    id
        Its number in the queue.
    state
        One of `STATES`.
    tries
        How often it was claimed since it was added or told to be tried again.
    worker
        Who has it, or had it last.
    reason
        Why the last try came to nothing; empty once it is done.
    added, changed
        When it was added, and when its state changed last: seconds since 1970.
    seconds
        What the label took; None while there is none.
    formula, natoms
        What it is made of.
    digest
        Of elements, cell, periodicity and positions: the same for the same frame.
    source
        Where it came from: what `add` was told, and what a saved frame says of itself (run, step, dH_max, ...).
    history
        What came to nothing, and what was done about it, oldest first: `at` (seconds since 1970), `what`, `worker`,
        `reason`.
    record
        What the oracle said of itself when the frame was done.
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
