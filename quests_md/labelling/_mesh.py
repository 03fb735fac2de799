"""Meshes of k-points: one spacing for all frames and codes, and what each code calls a mesh."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._convergence import find_code

__all__ = ["MESH_KEYS", "choose_mesh", "find_fixed_mesh", "measure_spacing", "mesh_keywords"]

# Keywords that give a mesh, in whatever calculator. With `kspacing` of the oracle none of them may be there.
MESH_KEYS = ("kpts", "k_grid", "k_grid_density", "kspacing", "ngkpt", "koffset", "gamma")
_SLACK = 1e-8  # of n: a spacing that divides the length but for rounding shall not give one point more


def _reciprocal_lengths(cell: ArrayLike, pbc: ArrayLike) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the lengths of the reciprocal vectors in 1/Å, 2π included, and which axes are periodic."""
    vectors, periodic = np.asarray(cell, dtype=float), np.asarray(pbc, dtype=bool)
    if not periodic.any():
        return np.zeros(3), periodic
    # Axes without a vector, as a slab may have them, get one at right angles to the others.
    from ase.geometry.cell import complete_cell

    return 2 * math.pi * np.linalg.norm(np.linalg.inv(complete_cell(vectors)).T, axis=1), periodic


def choose_mesh(cell: ArrayLike, pbc: ArrayLike, kspacing: float) -> list[int]:
    """Return how many k-points each axis gets, as VASP counts them: max(1, ceil(|b| / kspacing)), |b| with 2π.

    Parameters
    ----------
    cell
        (3, 3), in Å.
    pbc
        Which axes are periodic. The others get one point.
    kspacing
        Largest distance between points, in 1/Å, with 2π.

    Returns
    -------
    list of int
        Three numbers.
    """
    lengths, periodic = _reciprocal_lengths(cell, pbc)
    counts = np.maximum(1, np.ceil(lengths / kspacing - _SLACK)).astype(int)
    return [int(n) if each else 1 for n, each in zip(counts, periodic, strict=True)]


def measure_spacing(cell: ArrayLike, pbc: ArrayLike, mesh: ArrayLike) -> float | None:
    """Return the largest distance between points of a mesh, in 1/Å with 2π; None if no axis is periodic."""
    lengths, periodic = _reciprocal_lengths(cell, pbc)
    return float((lengths / np.asarray(mesh))[periodic].max()) if periodic.any() else None


def find_fixed_mesh(keywords: Mapping[str, Any]) -> list[int] | None:
    """Return the mesh that keywords fix for frames of any size; None if there is none."""
    for key in ("kpts", "k_grid", "ngkpt"):
        value = keywords.get(key)
        if isinstance(value, Mapping):
            value = value.get("size")
        if isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(n, int) and n > 0 for n in value):
            return list(value)
    return None


# -- what each code calls it -------------------------------------------------------------------------------------------


def _plain(mesh: list[int], keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {"kpts": mesh}


def _with_gamma(mesh: list[int], keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {"kpts": mesh, "gamma": True}


def _sized(mesh: list[int], keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {"kpts": {"size": mesh, "gamma": True}}


def _aims(mesh: list[int], keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {"k_grid": mesh}


def _abinit(mesh: list[int], keywords: Mapping[str, Any]) -> dict[str, Any]:
    # ASE's `kpts` moves even meshes off Γ.
    return {"kptopt": 1, "ngkpt": mesh, "nshiftk": 1, "shiftk": [[0.0, 0.0, 0.0]]}


def _cp2k(mesh: list[int], keywords: Mapping[str, Any]) -> dict[str, Any]:
    if mesh == [1, 1, 1]:  # without a mesh CP2K takes Γ, by faster code
        return {}
    # MACDONALD's shifts move an even mesh, which is symmetric about Γ, onto it.
    shifts = " ".join("0.0" if n % 2 else f"{0.5 / n:.17g}" for n in mesh)
    scheme = f"SCHEME MACDONALD {' '.join(map(str, mesh))} {shifts}"
    text = str(keywords.get("inp", ""))
    section = f"&KPOINTS\n{scheme}\nSYMMETRY F\n&END KPOINTS\n"
    for name in ("DFT", "FORCE_EVAL"):  # ASE takes each section once: it goes into the one that is there
        there = re.search(rf"(?im)^\s*&{name}\b.*\n", text)
        if there:
            return {"inp": text[: there.end()] + section + text[there.end() :]}
        section = f"&{name}\n{section}&END {name}\n"
    return {"inp": section + text}


_KEYWORDS: dict[str, Callable[[list[int], Mapping[str, Any]], dict[str, Any]]] = {
    "Quantum ESPRESSO": _plain,
    "ABINIT": _abinit,
    "CP2K": _cp2k,
    "VASP": _with_gamma,
    "FHI-aims": _aims,
    "SIESTA": _plain,
    "CASTEP": _sized,
    "DFTB+": _sized,
    "Elk": _plain,
    "GPAW": _sized,
}


def mesh_keywords(make: Any, mesh: list[int], periodic: bool, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that give a calculator a mesh centred at Γ.

    Parameters
    ----------
    make
        The class of the calculator, or a function that makes it: this one gets `kpts`, if it takes that.
    mesh
        Three numbers.
    periodic
        Whether an axis of the frame is periodic. FHI-aims takes no mesh if there is none.
    keywords
        The others.

    Raises
    ------
    ValueError
        It is not known how this calculator takes a mesh.
    """
    import inspect

    code = find_code(make)
    if code is not None and code.name in _KEYWORDS:
        if code.name == "FHI-aims" and not periodic:
            return {}
        return _KEYWORDS[code.name](mesh, keywords)
    if not isinstance(make, type) and callable(make) and "kpts" in inspect.signature(make).parameters:
        return {"kpts": mesh}
    raise ValueError(
        f"kspacing: how this calculator takes a mesh is known of {', '.join(_KEYWORDS)}, and of a function that has an "
        "argument kpts; leave kspacing out, and give the mesh by the calculator's own keywords"
    )
