"""Local residuals of the references themselves, each without its own frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..information import local_residuals, pack
from ._calibration import SAME, Rows, find_first_copies, is_worth_turning, leave_out
from ._data import IndexData
from ._parts import find_parts, join_residuals, limit_layout
from ._residuals import SQUARINGS, Residuals

__all__ = ["choose_squarings", "group_frames", "measure_left_out"]

_ASKED = 2000  # references whose ranking chooses a kernel
_FEWEST = 20  # references with a residual and with others to compare them with


def choose_squarings(index: IndexData, residuals: Residuals, threads: int | None = None) -> Residuals:
    """Return residuals with the kernel whose local residuals rank them best, each without its own frame.

    The measure is Spearman's correlation over an even sample of the references. So the kernel is as wide as the
    potential and the data want, whatever bandwidth dH has. If there are too few references, or two kernels rank
    equally well, the wider one is taken.

    Parameters
    ----------
    index
        The index; it does not change.
    residuals
        Those of its rows.
    threads
        Threads to use; None takes all cores.
    """
    from scipy.stats import rankdata  # not above: it would make every run start a second later

    known = np.flatnonzero(~np.isnan(residuals.values))
    asked = known[np.unique(np.linspace(0, len(known) - 1, _ASKED).astype(np.int64))]
    best, chosen = -np.inf, SQUARINGS[0]
    for squarings in SQUARINGS:
        _, s = measure_left_out(index, replace(residuals, squarings=squarings), asked, threads)
        use = np.flatnonzero(~np.isnan(s))
        errors = residuals.values[asked[use]]
        if len(use) < _FEWEST or np.ptp(errors) == 0.0:
            break
        rank = float(np.corrcoef(rankdata(s[use].round(9)), rankdata(errors))[0, 1])
        if rank > best:
            best, chosen = rank, squarings
    return replace(residuals, squarings=chosen)


def measure_left_out(
    index: IndexData, residuals: Residuals, asked: NDArray[np.int64], threads: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute dH and local residuals of references without their own frames, or without the groups of these.

    Copies of a frame belong to it.

    Parameters
    ----------
    index
        The index; it does not change.
    residuals
        Those of its rows.
    asked
        (m,) rows of the index.
    threads
        Threads to use; None takes all cores.

    Returns
    -------
    tuple
        dH (m,) in nats, inf where there is no other frame; and local residuals (m,) in eV/Å, nan where no other frame
        has a residual.
    """
    sums, s = np.full(len(asked), -np.inf), np.full(len(asked), np.nan)
    with index.reading():
        owner, group_of_frame = group_frames(index)
        for first, last in find_parts(index.numbers, index.descriptor.by_centre).values():
            mine = np.flatnonzero((asked >= first) & (asked < last))
            if len(mine):
                groups, values = group_of_frame[owner[first:last]], residuals.values[first:last].astype(np.float64)
                part = index.rows[first:last]
                sums[mine], s[mine] = _weigh(
                    part, groups, asked[mine] - first, values, residuals.squarings, index, threads
                )
    return 0.0 - sums, s


def group_frames(index: IndexData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the frame of every row (n_env,), and which frames belong together (n_frames,).

    Copies of a frame belong to it, and so do frames of its group, if frames have groups. This reads the rows.
    """
    rows = Rows(index.rows, index.numbers, index.order, index.frame_offsets)
    group_of_frame = find_first_copies(rows, SAME * index.bandwidth)
    if index.frame_groups:
        named = np.unique(np.asarray(index.frame_groups), return_inverse=True)[1]
        group_of_frame = named[group_of_frame]
    return rows.owner, group_of_frame


def _weigh(
    rows: NDArray[np.float32],
    groups: NDArray[np.int64],
    asked: NDArray[np.int64],
    values: NDArray[np.float64],
    squarings: int,
    index: IndexData,
    threads: int | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ln K and the local residuals of the rows `asked`, over the rows of other groups."""
    total, nowhere = np.full(len(asked), -np.inf), np.zeros(rows.shape[1])
    out = np.column_stack([np.full(len(asked), np.nan), total])
    step = limit_layout(rows.shape[1])
    for some, others in leave_out(groups, asked):
        query = np.ascontiguousarray(rows[asked[some]], np.float64)
        for first in range(0, len(others), step):
            part = others[first : first + step]
            blocks = pack(
                np.ascontiguousarray(rows[part]), index.bandwidth, "single", sort=is_worth_turning(len(part)),
                order=np.arange(len(part)), residuals=values[part], squarings=squarings, threads=threads,
            )  # fmt: skip
            sums, local = local_residuals(query, blocks, nowhere, threads)
            total[some] = np.logaddexp(total[some], sums)
            out[some] = join_residuals(out[some], local)
    return total, out[:, 0]
