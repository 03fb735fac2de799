"""Every kernel that a watched run may need, called once: so that they compile, or are loaded, before the run."""

from __future__ import annotations

import numpy as np

from ..elements import SYMBOLS
from ..frame import Frame
from ..index import Reference
from ..information import Precision
from ..kernels import tally
from ..own_function import OwnFunction
from ._decision import compute_mark
from ._errors import LocalErrors
from ._measure import Evaluation, Pool, combine, summarise

__all__ = ["ask_all"]


def ask_all(index: Reference, precision: Precision, is_flagged: bool) -> None:
    """Call every kernel that a run may need, once."""
    known = SYMBOLS.index(index.centre_elements[0]) if index.ready else 1
    spec = index.spec
    two = Frame(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), np.array([known] * 2), np.eye(3) * 9.0, True)
    compute_mark(two)
    vector = summarise(np.zeros(2), np.arange(2), np.zeros(2, np.uint8), (np.zeros(1), np.zeros(1)))
    for ranks in (1, 2):
        combine(np.repeat(vector[None], ranks, axis=0))
    Pool(0).describe(0)
    if not index.ready:
        return
    rows = np.zeros((2, spec.width)) if isinstance(spec, OwnFunction) else spec.compute(two, 1)
    precisions: set[Precision] = {"double"} if is_flagged else {"double", precision}
    local = LocalErrors.find(index)
    if local is not None:
        for each in precisions:
            Evaluation(index, two, 1, errors=local).compute(np.arange(2), each)
        LocalErrors(index, local, 2).estimate(slice(0, 2), rows, 1)
    for times in (1, 50):  # a large index uses different kernels for few and for many queries
        for each in sorted(precisions):
            index.log_kernel_sum(np.repeat(rows, times, axis=0), 1, precision=each)
    if is_flagged:
        index.upper_bound(rows, 0.0, np.full(len(rows), -1, np.int32), 1)
        _count_all()


def _count_all() -> None:
    """Call every kernel that counts flagged values, once."""
    ids, marks, values, memory = np.arange(2), np.zeros(2, bool), np.zeros(2), np.full(2, -1, np.int32)
    tally.mark_sample(ids, 0, 1, marks)
    tally.choose(ids, marks, ids, np.empty(2, np.int64))
    tally.recall(ids, memory, memory.copy())
    tally.settle(values, 0.0, ids, memory, memory.copy(), marks, values.copy(), np.empty(2, np.int64))
    tally.find_largest(values, marks, ids, 0.0, np.empty(2, np.int64))
