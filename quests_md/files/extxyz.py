"""Extended XYZ with 17 significant digits, so that a frame that is read again has the same dH.

ASE's own writer keeps 8 decimals, which changes dH by up to 1e-3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame

__all__ = ["Columns", "format_atoms", "format_columns", "format_frame", "format_parts", "format_properties"]

_ATOMS = 10_000  # atoms that are formatted at a time
# The letter of a column, by the kind of its values; ASE reads texts as objects.
_KINDS = {"b": "L", "i": "I", "u": "I", "f": "R", "U": "S", "O": "S"}

# Strings that need no quotes, because they do not look like a number or a truth value.
_WORD = re.compile(r"(?!(t|f|true|false|nan|inf|infinity)\Z)[a-z_][a-z0-9_.:-]*", re.ASCII | re.IGNORECASE)

# Keys that ASE reads as labels or as part of the frame, and never as info.
_RESERVED = ("Lattice", "Properties", "pbc", "energy", "free_energy", "forces", "stress", "virial")

Column = tuple[str, NDArray[Any]]
Columns = dict[str, NDArray[Any]]


def format_properties(columns: Sequence[Column]) -> str:
    """Return the value of the key ``Properties``, which names the columns: arrays (n,) or (n, m)."""
    return ":".join(
        f"{name}:{_KINDS[values.dtype.kind]}:{values.shape[1] if values.ndim == 2 else 1}" for name, values in columns
    )


def format_columns(columns: Sequence[Column], keys: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the text of a frame in pieces, because the text of a large frame needs much memory.

    Parameters
    ----------
    columns
        Name and values, (n,) or (n, m), of each column; `format_properties` of them must be among the keys.
    keys
        Numbers, truth values, texts, arrays (written flat), and what JSON can hold.
    """
    n = len(columns[0][1])
    words = [f"{_format_key(key)}={_format_value(value)}" for key, value in keys.items()]
    yield (f"{n}\n" + " ".join(words) + "\n").encode()
    for first in range(0, n, _ATOMS):
        cells = [_format_column(values[first : first + _ATOMS]) for _, values in columns]
        yield "".join(" ".join(row) + "\n" for row in zip(*cells, strict=True)).encode()


def format_atoms(atoms: Any, every_result: bool = False) -> bytes:
    """Format an ``ase.Atoms``: all its arrays and info, and energy, forces and stress if its calculator has them.

    Nothing is calculated. Info with the name of a label is left out. With `every_result` the calculator's other results
    (charges, magnetic moments, a dipole) are written, too, and which atoms are fixed.
    """
    results = {} if atoms.calc is None else atoms.calc.results
    columns: list[Column] = [("species", np.array(atoms.get_chemical_symbols())), ("pos", atoms.positions)]
    others = {name: values for name, values in atoms.arrays.items() if name not in ("numbers", "positions", "forces")}
    columns += [(name, _flatten(values)) for name, values in others.items()]
    if "forces" in results:
        columns.append(("forces", np.asarray(results["forces"])))
    more = {
        name: value for name, value in results.items() if every_result and name not in ("energy", "forces", "stress")
    }
    of_atoms = {
        name for name, value in more.items() if np.ndim(value) and len(value) == len(atoms) and name != "dipole"
    }
    columns += [(name, _flatten(np.asarray(more[name]))) for name in more if name in of_atoms]
    fixed = [c.index for c in atoms.constraints if every_result and type(c).__name__ == "FixAtoms"]
    if fixed:
        columns.append(("move_mask", ~np.isin(np.arange(len(atoms)), np.concatenate(fixed))))
    keys: dict[str, Any] = {"Lattice": np.asarray(atoms.cell)} if atoms.cell.any() else {}
    keys |= {"Properties": format_properties(columns), "pbc": np.asarray(atoms.pbc)}
    if "energy" in results:
        keys["energy"] = float(results["energy"])
    if "stress" in results:
        xx, yy, zz, yz, xz, xy = np.asarray(results["stress"], dtype=float)
        keys["stress"] = np.array([xx, xy, xz, xy, yy, yz, xz, yz, zz])
    keys |= {name: _to_readable(value) for name, value in more.items() if name not in of_atoms}
    keys |= {key: _to_readable(value) for key, value in atoms.info.items() if key not in _RESERVED}
    return b"".join(format_columns(columns, keys))


def format_frame(frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], columns: Columns | None = None) -> bytes:
    """Format a whole frame as extended XYZ.

    The columns are species, pos, id, dH, those of `columns` (numbers or truth values, (n,) or (n, m)), and, if the
    frame has them, momenta (in ASE's units, with the standard masses, so that ``atoms.get_velocities()`` is right) and
    model_forces. The keys are Lattice if there is a cell, Origin if it is not zero, pbc, those of `info` (numbers,
    truth values, strings), and model_energy. The names ``energy`` and ``forces`` are for the labels of an oracle.
    """
    return b"".join(format_parts(frame, dH, info, columns))


def format_parts(frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], more: Columns | None) -> Iterator[bytes]:
    """Yield what `format_frame` returns in pieces, because the text of a large frame needs much memory."""
    # ase is imported here, and not at the top, so that `import quests_md` stays fast.
    from ase.data import atomic_masses, chemical_symbols

    columns: list[Column] = [("species", np.array(chemical_symbols)[frame.numbers])]
    columns += [("pos", frame.positions), ("id", np.asarray(frame.ids)), ("dH", dH)]
    if frame.velocities is not None:
        columns.append(("momenta", frame.velocities * atomic_masses[frame.numbers][:, None]))
    if frame.forces is not None:
        columns.append(("model_forces", frame.forces))
    columns += (more or {}).items()
    keys: dict[str, Any] = {"Lattice": frame.cell} if np.any(frame.cell) else {}
    keys["Properties"] = format_properties(columns)
    if np.any(frame.origin):
        keys["Origin"] = frame.origin
    keys.update(pbc=frame.pbc, **info)
    if frame.energy is not None:
        keys["model_energy"] = frame.energy
    yield from format_columns(columns, keys)


def _flatten(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim <= 2 else values.reshape(len(values), -1)


def _to_readable(value: Any) -> Any:
    """Return info in a form that ASE reads back unchanged. ASE would change an array of one or of nine numbers."""
    if isinstance(value, np.ndarray) and (value.ndim != 1 or value.size in (0, 1, 9) or value.dtype.kind not in "bif"):
        return value.tolist()
    return value


def _format_column(values: NDArray[Any]) -> list[str]:
    if values.dtype.kind == "b":
        values = np.where(values, "T", "F")
    # repr gives the shortest text that reads as the same double; on Python's numbers it is twice as fast as on numpy's.
    cell = repr if values.dtype.kind in "iuf" else _format_cell
    if values.ndim == 2:
        return [" ".join(map(cell, row)) for row in values.tolist()]
    return list(map(cell, values.tolist()))


def _format_cell(value: Any) -> str:
    return ("_".join(value.split()) or "_") if isinstance(value, str) else repr(value)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[\w.:-]+", key) else _quote(key)


def _format_value(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return '"' + " ".join(map(_format_value, value.ravel())) + '"'
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    if isinstance(value, bool):
        return "FT"[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    # ASE's own escape for values that it would not read back unchanged.
    return _quote("_JSON " + json.dumps(value if isinstance(value, (str, list, dict)) else str(value)))


def _quote(words: str) -> str:
    return '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'
