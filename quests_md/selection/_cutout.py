"""Cut-outs: small cells or clusters around the worst atoms of a frame that is too large for an oracle."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..frame import Frame
from ..index import Index
from ._shapes import Parent, Piece, cut_cell, cut_cluster, find_smallest_distances, format_formula

__all__ = ["Cutout", "check_cutout", "cutouts"]

_SHAPES = ("cell", "cluster")
# The options that a run has for the cut-outs of its candidates.
_OPTIONS = ("radius", "margin", "potential_range", "shape", "vacuum", "passivate", "most")


@dataclass(frozen=True)
class Cutout:
    """A part of a frame, small enough for an oracle. Train only on the forces on its core.

    Attributes
    ----------
    frame
        The atoms of the cut-out: the centre first, the others by distance from it. `ids` are those of the parent's
        atoms, −1 for added hydrogens; an id occurs twice if two images of an atom are in it. `forces` are the parent's,
        nan outside the core. The watched atoms are the core.
    core
        (n,) bool: atoms whose environments, out to the margin, are as in the parent.
    dH
        (n,) dH in the parent, in nats; nan outside the core.
    rows
        (n,) rows of the parent's atoms; −1 for added hydrogens.
    info
        Keys for a file: ``cutout``, ``fit``, step and time of the parent, ``centre`` (id), ``dH_max`` and
        ``dH_max_id`` of the core, ``shape``, ``radius`` and ``margin`` (Å), ``n_core``, ``composition`` and
        ``parent_composition``, ``removed``, ``filled``, ``hydrogens`` and ``dangling`` (see `cutouts`).
    """

    frame: Frame
    core: NDArray[np.bool_]
    dH: NDArray[np.float64]
    rows: NDArray[np.int64]
    info: dict[str, Any] = field(default_factory=dict)


def cutouts(
    frame: Frame,
    dH: NDArray[np.float64],
    cutoff: float,
    *,
    threshold: float,
    radius: float,
    margin: float | None = None,
    potential_range: float | None = None,
    shape: Literal["cell", "cluster"] = "cell",
    vacuum: float = 12.0,
    passivate: bool = False,
    most: int | None = None,
    index: Index | None = None,
    also: NDArray[np.bool_] | None = None,
) -> list[Cutout]:
    """Cut out the surroundings of the worst atoms of a frame.

    The worst atom above `threshold` is the centre of the first cut-out. The worst atom that is not in its core is the
    centre of the next one, and so on. All atoms within `radius` of the centre are the core. All atoms within radius +
    margin keep their places.

    Parameters
    ----------
    frame
        A whole frame, without ghosts. Sites of atomic number 0 are left out.
    dH
        (n,) dH of every atom, in nats, nan for those not watched; or one value per environment of the frame.
    cutoff
        Cutoff of the descriptor, in Å.
    threshold
        Atoms with a dH above this, in nats, become centres.
    radius
        Radius of the core, in Å; 0: the core is the centre alone.
    margin
        Width of the unchanged surroundings of the core, in Å. Default: the larger of `cutoff` and twice
        `potential_range`.
    potential_range
        Cutoff of the running model's potential, in Å. The force on an atom depends on the energies of its neighbours,
        which depend on their own neighbours. So a margin of twice the range keeps the forces on the core, for all
        potentials that are sums of atomic energies (EAM, Stillinger–Weber, Tersoff, SNAP, ACE, MTP). For a pair
        potential give its range as `margin`.
    shape
        "cell": a periodic cell with edges along those of the parent. An edge is up to a quarter longer than needed, if
        the structure repeats itself at that length. If the parent is hardly longer than the cut-out must be along a
        direction, this direction is not cut. Atoms beyond the margin that overlap an image across a new boundary are
        left out (`removed`); atoms from outside the cell close gaps there (`filled`). "cluster": all atoms within
        radius + margin, in vacuum.
    vacuum
        Distance between images along directions that are not periodic, in Å.
    passivate
        Close the cut bonds of a cluster with hydrogens beyond the margin. If a hydrogen would come within the margin,
        the bonded atom itself is taken in. A hydrogen that would come nearer than 1 Å to another atom is left out, and
        `dangling` counts its bond.
    most
        Largest number of cut-outs.
    index
        Two atoms overlap if they are nearer than 0.9 times the smallest distance of their elements in this index. With
        None, the smallest distance in the frame is taken.
    also
        (n,) bool: atoms that become centres whatever their dH is; by default none.

    Returns
    -------
    list of Cutout
        The worst first; empty if no atom is above the threshold.

    Raises
    ------
    FrameError, InputError
        The frame has ghosts, a singular cell, or positions that are not finite; or an argument is out of range.
    """
    dH = _spread(frame, np.asarray(dH, dtype=np.float64))
    margin = _find_margin(cutoff, margin, potential_range)
    _check_options(threshold, radius, shape, vacuum, passivate, most)
    assert frame.ids is not None
    with np.errstate(invalid="ignore"):
        above = np.flatnonzero(((dH > threshold) | (False if also is None else also)) & (frame.numbers != 0))
    if not len(above):
        return []
    parent = Parent(frame, radius + margin)
    closest = find_smallest_distances(frame, cutoff, index)
    done, found = np.zeros(len(dH), dtype=bool), list[Cutout]()
    for centre in above[np.lexsort((frame.ids[above], -dH[above]))].tolist():
        if most is not None and len(found) == most:
            break
        if done[centre]:
            continue
        if shape == "cell":
            piece = cut_cell(parent, centre, radius, margin, vacuum, closest)
        else:
            piece = cut_cluster(parent, centre, radius, margin, vacuum, passivate)
        done[piece.rows[piece.core]] = True
        how = {"shape": shape, "radius": float(radius), "margin": margin}
        found.append(_make_cutout(frame, dH, centre, piece, how))
    return found


def check_cutout(given: Mapping[str, Any], cutoff: float = 0.0) -> None:
    """Raise `InputError` unless `given` are valid keywords of `cutouts` about size and shape, with `radius`.

    With the `cutoff` of a descriptor (Å), the margin is checked, too.
    """
    for key in given:
        if key not in _OPTIONS:
            near = difflib.get_close_matches(str(key), _OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_OPTIONS)}"
            raise InputError(f"cutout: unknown key {key!r}; {hint}")
    if "radius" not in given:
        raise InputError("cutout: give the radius of the core, in Å: cutout = { radius = 4.0 }")
    for key, value in given.items():
        kinds = {"shape": str, "passivate": bool, "most": int}.get(key, (int, float))
        if not isinstance(value, kinds) or (isinstance(value, bool) and key != "passivate"):
            raise InputError(f"cutout: {key} cannot be {value!r}")
    options: dict[str, Any] = {"shape": "cell", "vacuum": 12.0, "passivate": False, "most": None} | dict(given)
    try:
        _find_margin(cutoff or 1e-9, options.pop("margin", None), options.pop("potential_range", None))
        _check_options(0.0, **options)
    except InputError as error:
        raise InputError(f"cutout: {error}") from None


def _spread(frame: Frame, dH: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return dH (n,) of all atoms. `dH` has one value for each atom, or one for each environment."""
    n, centres = len(frame.positions), frame.centres
    if dH.shape == (n,):
        return dH
    if dH.shape != (len(centres),):
        raise InputError(
            f"dH must have one value per atom ({n}) or per environment ({len(centres)}) of the frame, not {dH.shape}"
        )
    every = np.full(n, np.nan)
    every[centres] = dH
    return every


def _find_margin(cutoff: float, margin: float | None, potential_range: float | None) -> float:
    for name, value in (("cutoff", cutoff), ("margin", margin), ("potential_range", potential_range)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be a positive length in Å, not {value!r}")
    if margin is None:
        return float(max(cutoff, 2.0 * (potential_range or 0.0)))
    if potential_range is not None:
        raise InputError("give either margin or potential_range, which sets the margin to twice itself")
    if margin < cutoff:
        raise InputError(f"margin = {margin} Å is less than the descriptor's cutoff, {cutoff} Å: dH would change")
    return float(margin)


def _check_options(
    threshold: float, radius: float, shape: str, vacuum: float, passivate: bool, most: int | None
) -> None:
    if math.isnan(threshold):
        raise InputError("threshold must be a number in nats, not nan")
    if not (math.isfinite(radius) and radius >= 0):
        raise InputError(f"radius must be a length in Å, 0 or more, not {radius!r}")
    if shape not in _SHAPES:
        raise InputError(f'shape must be "cell" or "cluster", not {shape!r}')
    if not (math.isfinite(vacuum) and vacuum > 0):
        raise InputError(f"vacuum must be a positive length in Å, not {vacuum!r}")
    if passivate and shape == "cell":
        raise InputError('passivate is for shape = "cluster": a periodic cell has no cut bonds to close')
    if most is not None and most < 1:
        raise InputError(f"most must be at least 1, not {most!r}")


def _make_cutout(frame: Frame, dH: NDArray[np.float64], centre: int, piece: Piece, how: dict[str, Any]) -> Cutout:
    """Make a cut-out of a piece: atoms sorted by distance from the centre, then by id."""
    assert frame.ids is not None
    ids = np.where(piece.rows < 0, -1, frame.ids[piece.rows])
    order = np.lexsort((ids, piece.distances.round(6)))
    rows, core, ids = piece.rows[order], piece.core[order], ids[order]
    numbers = np.where(rows < 0, 1, frame.numbers[rows])
    forces = None if frame.forces is None else np.where(core[:, None], frame.forces[rows], np.nan)
    own = np.where(core, dH[rows], np.nan)
    worst = np.flatnonzero(core)[np.nanargmax(own[core])]
    cut = Frame(
        piece.positions[order],
        numbers,
        piece.cell,
        piece.pbc,
        ids=ids,
        step=frame.step,
        time=frame.time,
        watched=core,
        forces=forces,
    )
    info = {"cutout": True, **_describe_fit(piece.whole), "step": frame.step, "time": frame.time}
    info |= {"centre": int(frame.ids[centre]), "dH_max": float(own[worst]), "dH_max_id": int(ids[worst]), **how}
    info |= {"n_core": int(core.sum()), "composition": format_formula(numbers)}
    info["parent_composition"] = format_formula(frame.numbers[frame.numbers != 0])
    info |= {"removed": piece.removed, "filled": piece.filled}
    info |= {"hydrogens": piece.hydrogens, "dangling": piece.dangling}
    return Cutout(cut, core, own, rows, info)


def _describe_fit(whole: bool) -> dict[str, Any]:
    """Return the keys that say what may be used for training: in words, and as weights that MACE reads."""
    if whole:
        return {"fit": "everything: nothing was cut"}
    weights = dict.fromkeys(("config_energy_weight", "config_stress_weight", "config_virials_weight"), 0.0)
    return {"fit": "forces of core atoms only", **weights}
