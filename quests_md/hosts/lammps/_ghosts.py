"""Whether LAMMPS's ghost atoms are all that the cell implies: without one of them, dH would be of half an environment.

Several commands leave ghosts out, before attaching or after it, and LAMMPS does not tell of all of them. So this counts
what is there. No single command needs to be known.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...comm import Comm
from ...descriptors import cell_of
from ...errors import HostError, QuestsError
from ...frame import Frame
from ...kernels.neighbors import pad_images

__all__ = ["find_missing_ghosts"]

# Atoms in the outermost thousandth of the cutoff weigh nothing, and a plane of a crystal may lie just at the cutoff.
_SHARE = 0.999


def find_missing_ghosts(frame: Frame | None, cutoff: float, comm: Comm) -> HostError | None:
    """Return an error, on all ranks, if an atom has fewer neighbours in LAMMPS than in its cell. Collective.

    Parameters
    ----------
    frame
        Atoms and ghosts of this rank; None if they could not be read. Then nothing is compared.
    cutoff
        Of the descriptor, in Å.
    """
    reach = _SHARE * cutoff
    if _count_in_boxes(frame, reach, comm):
        return None
    # An atom that has strayed, or one just at the edge of a box, changes the counts, too. Only neighbours decide.
    parts = comm.gather(_count_neighbours(frame, reach))
    error: HostError | None = comm.broadcast(None if parts is None else _compare(frame, parts, reach, cutoff))
    return error


def _count_in_boxes(frame: Frame | None, reach: float, comm: Comm) -> bool:
    """Return whether the box around each rank's atoms holds as many atoms as the atoms of all ranks have images in it.

    The boxes are larger than the atoms need by `reach`. They and the images are those of fractional coordinates.
    """
    box, widths, fractions = np.full(6, np.nan), np.zeros(3), np.empty((0, 3))
    n_local, pbc = 0, np.zeros(3, bool)
    if frame is not None and np.isfinite(frame.positions).all():
        try:
            inverse, pbc = cell_of(frame, reach)[1:]
        except QuestsError:
            pass  # the evaluation tells of it
        else:
            assert frame.origin is not None
            atoms = frame.numbers != 0
            n_local = int(atoms[: frame.n_local].sum())
            fractions = ((frame.positions - frame.origin) @ inverse)[atoms]
            widths = reach * np.linalg.norm(inverse, axis=0)
            local = fractions[:n_local]
            box[:3], box[3:] = (local.min(axis=0), local.max(axis=0)) if n_local else (np.inf, -np.inf)
    boxes = comm.allgather(box)
    if np.isnan(boxes).any():
        return True
    low, high = boxes[:, :3] - widths, boxes[:, 3:] + widths
    counts = np.empty(comm.size + 1)
    for rank in range(comm.size):
        counts[rank] = _count_images(fractions[:n_local], low[rank], high[rank], pbc)
    inside = (fractions >= low[comm.rank]) & (fractions <= high[comm.rank])
    counts[-1] = inside.all(axis=1).sum()
    table = comm.allgather(counts)
    return bool((table[:, :-1].sum(axis=0) == table[:, -1]).all())


def _count_images(
    fractions: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> float:
    """Return how many periodic images of atoms, the atoms included, lie in a box of fractional coordinates."""
    if not len(fractions) or not np.isfinite(low).all():
        return 0.0
    inside = (fractions >= low) & (fractions <= high)
    images = np.maximum(np.floor(high - fractions) - np.ceil(low - fractions) + 1.0, 0.0)
    return float(np.where(pbc, images, inside).prod(axis=1).sum())


def _count_neighbours(
    frame: Frame | None, reach: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]] | None:
    """Return positions, ids and numbers of neighbours of this rank's atoms, and which of them are watched."""
    if frame is None:
        return None
    from scipy.spatial import cKDTree

    assert frame.ids is not None
    assert frame.watched is not None
    atoms = frame.numbers != 0
    local = atoms[: frame.n_local]
    places = frame.positions[: frame.n_local][local]
    found = cKDTree(frame.positions[atoms]).query_ball_point(places, reach, return_length=True)
    return places - frame.origin, frame.ids[: frame.n_local][local], found, frame.watched[local]


def _compare(frame: Frame | None, parts: list[object], reach: float, cutoff: float) -> HostError | None:
    """Compare the numbers of neighbours of all ranks' atoms with those that the cell gives."""
    if frame is None or any(part is None for part in parts):
        return None
    from scipy.spatial import cKDTree

    places, ids, found, watched = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    points, _ = pad_images(np.ascontiguousarray(places), *cell_of(frame, reach), reach)
    there = cKDTree(points).query_ball_point(points[: len(places)], reach, return_length=True)
    missing = np.flatnonzero((found < there) & watched)
    if not len(missing):
        return None
    first = missing[np.argmin(ids[missing])]
    return HostError(
        f"ghost atoms are missing: LAMMPS has {found[first] - 1} neighbours of atom {ids[first]} within {cutoff:g} Å, "
        f"and its cell has {there[first] - 1} (so it is for {len(missing)} atoms). Remove `comm_modify group`, and set "
        "`comm_modify cutoff` to the cutoff plus the skin of `neighbor`, before attaching and after it"
    )
