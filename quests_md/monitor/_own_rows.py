"""Own descriptors of a frame, before it is measured: their function needs the whole frame. Rank 0 puts it together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm
from ..descriptors import check_positions
from ..errors import FrameError
from ..frame import Frame, merge
from ..own_function import OwnFunction
from ._rules import Plausibility

__all__ = ["compute_own_rows"]


def compute_own_rows(
    spec: OwnFunction, frame: Frame | None, error: Exception | None, plausibility: Plausibility, comm: Comm
) -> tuple[NDArray[np.float64] | None, Exception | None]:
    """Return the rows (n, d) of this rank's watched atoms, or None and the error of this rank, if it has one.

    The function is called on rank 0 alone: a model may be too large to be there several times. If it fails, only rank 0
    has an error, and no rank has rows. Collective.

    Parameters
    ----------
    spec
        The function.
    frame, error
        This rank's part of the frame; or None, and why this rank could not make it.
    plausibility
        What finds overlapping atoms. They are looked for first: a model may raise anything for them.
    comm
        The ranks.
    """
    if comm.size == 1:
        rows, error = (None, error) if error is not None else _describe(spec, frame, plausibility)
        return (None if rows is None or frame is None else rows[frame.centres]), error
    parts = comm.gather(None if error is not None or frame is None else frame.bare())
    answer: Any = None
    if parts is not None and all(part is not None for part in parts):
        whole, _ = merge(parts)
        rows, error = _describe(spec, whole, plausibility)
        answer = None if rows is None else (whole.ids, rows)
    answer = comm.broadcast(answer)
    if answer is None or frame is None:
        return None, error
    ids, rows = answer
    assert frame.ids is not None
    return rows[np.searchsorted(ids, frame.ids[frame.centres])], error


def _describe(
    spec: OwnFunction, frame: Frame | None, plausibility: Plausibility
) -> tuple[NDArray[np.float64] | None, Exception | None]:
    """Return the rows (n, d) of all atoms of a frame that is whole; or None, and why there are none."""
    assert frame is not None
    try:
        check_positions(frame)
        overlap = plausibility.find_overlap(frame) if plausibility.screen else ""
        if overlap:
            raise FrameError(overlap)
        return spec.compute_all(frame), None
    except Exception as caught:  # noqa: BLE001 - the other ranks must learn any error
        return None, caught
