"""Labels of frames, found by their names: energy, forces and stress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError

__all__ = ["find_label", "name_what_is_there", "set_labels"]

_SHOWN = 30  # names in a message
# Shapes of a label, besides (n, 3) of the forces; and what one says that it is.
_LABELS: dict[str, tuple[tuple[tuple[int, ...], ...], str]] = {
    "energy": (((), (1,)), "a number (eV)"),
    "forces": ((), "three numbers (eV/Å) for each atom"),
    "stress": (((6,), (9,), (3, 3)), "6 or 9 numbers (eV/Å³)"),
}


def find_label(atoms: Any, name: str, key: str | None = None, where: str = "the frame") -> Any:
    """Return a label of an ``ase.Atoms``, or None. Nothing is calculated.

    Parameters
    ----------
    atoms
        The frame.
    name
        "energy", "forces" or "stress".
    key
        The name that the label has in the file; None: its own. ASE puts some labels into a calculator, and others
        into info or arrays: all are looked through.
    where
        Names the frame in an error.

    Returns
    -------
    float, (n, 3) or (6,)
        In eV, eV/Å or eV/Å³, in ASE's order and sign.

    Raises
    ------
    SourceError
        The value is something else.
    """
    key = key or name
    results = {} if atoms.calc is None else atoms.calc.results
    places: list[Mapping[str, Any]] = [results, atoms.arrays if name == "forces" else atoms.info]
    value = next((place[key] for place in places if place.get(key) is not None), None)
    if value is None:
        return None
    shapes, wanted = _LABELS[name]
    array: NDArray[Any] = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape not in [*shapes, *([(len(atoms), 3)] if name == "forces" else [])]:
        said = repr(value) if array.ndim == 0 else f"an array of {array.dtype}, {array.shape}"
        raise SourceError(f"{where}: {key} should be {wanted} to be the {name}, and it is {said}")
    array = array.astype(np.float64)
    if name == "energy":
        return float(array.reshape(()))
    return _to_stress(array, key, atoms, where) if name == "stress" else array


def _to_stress(values: NDArray[np.float64], key: str, atoms: Any, where: str) -> NDArray[np.float64]:
    """Return a stress in Voigt's order (6,), in eV/Å³, from 6 or 9 numbers; a virial is -stress times volume."""
    if values.size == 9:
        whole = values.reshape(3, 3)
        whole = (whole + whole.T) / 2
        values = whole[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    if "virial" not in key.lower():
        return values
    volume = abs(float(np.linalg.det(np.asarray(atoms.cell))))
    if not volume > 0:
        raise SourceError(f"{where}: {key} is a virial, which is a stress only in a cell: it has none")
    return -values / volume


def name_what_is_there(atoms: Any) -> str:
    """Return a sentence that names what a frame holds and could be a label, and how one names it."""
    results = [] if atoms.calc is None else [*atoms.calc.results]
    groups = {
        "labels": results,
        "info": [*atoms.info],
        "arrays": [name for name in atoms.arrays if name not in ("numbers", "positions")],
    }
    said = [f"{', '.join(map(str, names[:_SHOWN]))} ({kind})" for kind, names in groups.items() if names]
    if not said:
        return "It has no other values"
    return f"It has {'; '.join(said)}. energy_key, forces_key and stress_key (--energy-key, ...) name labels"


def set_labels(atoms: Any, labels: dict[str, Any]) -> Any:
    """Return a frame whose calculator holds labels, and what it held under other names."""
    from ase.calculators.calculator import all_properties
    from ase.calculators.singlepoint import SinglePointCalculator

    results = {} if atoms.calc is None else atoms.calc.results
    # A free energy beside another energy would be that of another calculation.
    kept = {name: value for name, value in results.items() if name in {*all_properties} - {"free_energy", *_LABELS}}
    if results.get("energy") == labels.get("energy") and "free_energy" in results:
        kept["free_energy"] = results["free_energy"]
    atoms.calc = SinglePointCalculator(atoms, **kept, **labels)
    return atoms
