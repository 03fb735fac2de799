"""The derivative of dH by a query: how far it is, on average, from the references that matter to it.

With p_j = K_j / Σ K, the derivative of dH = −ln Σ_j exp(−‖q − r_j‖²/2h²) by q is Σ_j p_j (q − r_j) / h². Given ln K(q),
the search tree (`kernels.search`) tells which of its leaves have a p_j that counts. All is in double precision: a force
must be the derivative of its energy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._simd_sum import exp_negative
from .blocks import LEAF, padded
from .jit import kernel
from .search import FAN, Question, Tree, distances

Array = NDArray[Any]

BLOCK = 96  # queries that pass a leaf together, while its rows are in the first cache
_NEGLIGIBLE = 30.0  # −ln of a share of the sum: ten thousand of them add 1e-9
_ROOM = 1.0 + 1e-4  # single precision may find a distance too large by much less
_DEPTH = 64  # nodes that can wait: each level of the tree adds at most FAN − 1
_NOWHERE = 1e30  # the squared distance of a row that does not exist


@kernel
def _find_leaves(
    query: Array, reach: float, tree: Tree, ask: Question, squared: Array, waiting: Array, i: int, out: Array
) -> None:
    """Set ``out[leaf, i]`` to 1 for all leaves that may have a row within `reach` (1/Å) of a query."""
    waiting[0], size = len(tree.radius) - 1, 1
    while size:
        size -= 1
        node = waiting[size]
        if node < tree.first[1]:
            out[node, i] = 1
            continue
        level = 1
        while node >= tree.first[level + 1]:
            level += 1
        begin = tree.first[level - 1] + (node - tree.first[level]) * FAN
        count = min(FAN, tree.first[level] - begin)
        distances(query, tree.centres, begin, count, squared, ask.vector)
        for child in range(count):
            if math.sqrt(squared[child]) <= (reach + tree.radius[begin + child]) * _ROOM + 2.0 * ask.absolute:
                waiting[size] = begin + child
                size += 1


@kernel
def _load_leaf(leaf: int, tree: Tree, rows: Array, norms: Array) -> None:
    """Write the rows of a leaf into `rows` (LEAF, d and zeros), and their squared lengths into `norms`."""
    first, d = leaf * LEAF, tree.rows.shape[1]
    count = min(LEAF, len(tree.rows) - first)
    norms[:] = _NOWHERE
    for j in range(count):
        total = 0.0
        for c in range(d):
            x = np.float64(tree.rows[first + j, c])
            rows[j, c] = x
            total += x * x
        norms[j] = total


@kernel
def _add_leaf(
    query: Array, rows: Array, norms: Array, sharpness: float, log_sum: float, shares: Array, out: Array
) -> float:
    """Add Σ p_j r_j over a leaf to `out` (d and zeros,), and return Σ p_j. Rows that do not exist have p = e⁻⁶⁰."""
    d, own, total = len(query), 0.0, 0.0
    for c in range(d):
        own += query[c] * query[c]
    for j in range(0, LEAF, 4):  # four rows at a time: each number of the query is read once
        a, b, x, y = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        at_a, at_b, at_x, at_y = 0.0, 0.0, 0.0, 0.0
        for c in range(d):
            at_a += query[c] * a[c]
            at_b += query[c] * b[c]
            at_x += query[c] * x[c]
            at_y += query[c] * y[c]
        shares[j], shares[j + 1], shares[j + 2], shares[j + 3] = at_a, at_b, at_x, at_y
    for j in range(LEAF):
        squared = own - 2.0 * shares[j] + norms[j]
        shares[j] = exp_negative(min(-sharpness * squared - log_sum, 1.0))
    for j in range(LEAF):
        shares[j] = shares[j] if norms[j] < _NOWHERE else 0.0
        total += shares[j]
    for j in range(0, LEAF, 4):
        a, b, x, y = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        of_a, of_b, of_x, of_y = shares[j], shares[j + 1], shares[j + 2], shares[j + 3]
        for c in range(d):
            out[c] += (of_a * a[c] + of_b * b[c]) + (of_x * x[c] + of_y * y[c])
    return total


@kernel
def mean_differences(
    query: Array, tree: Tree, ask: Question, log_sums: Array, first: int, last: int, out: Array
) -> None:
    """Write Σ_j p_j (q − r_j) of the queries first..last into `out` (n, d), and make `log_sums` exact.

    `log_sums` (n,) are ln K(q), and may be wrong by 0.01. Of `ask` only the centre, 1/2h² and `vector` are used. The
    order of a sum is that of the references, so a result depends on no other query.
    """
    d, leaves = tree.rows.shape[1], tree.first[1]
    queries, sums, totals = np.zeros((BLOCK, padded(d))), np.zeros((BLOCK, padded(d))), np.zeros(BLOCK)
    needed, single = np.zeros((leaves, BLOCK), np.int8), np.empty(d, np.float32)
    squared, waiting = np.empty(FAN, np.float32), np.empty(_DEPTH, np.int64)
    rows, norms, shares = np.zeros((LEAF, padded(d))), np.empty(LEAF), np.empty(LEAF)
    for begin in range(first, last, BLOCK):
        n = min(BLOCK, last - begin)
        needed[:], sums[:], totals[:] = 0, 0.0, 0.0
        for i in range(n):
            for c in range(d):
                queries[i, c] = query[begin + i, c] - ask.centre[c]
                single[c] = queries[i, c]
            reach = math.sqrt(max(0.0, (_NEGLIGIBLE - log_sums[begin + i]) / ask.sharpness))
            _find_leaves(single, reach, tree, ask, squared, waiting, i, needed)
        for leaf in range(leaves):
            loaded = False
            for i in range(n):
                if needed[leaf, i]:
                    if not loaded:
                        _load_leaf(leaf, tree, rows, norms)
                        loaded = True
                    log_sum = log_sums[begin + i]
                    totals[i] += _add_leaf(queries[i], rows, norms, ask.sharpness, log_sum, shares, sums[i])
        for i in range(n):
            for c in range(d):
                out[begin + i, c] = queries[i, c] - sums[i, c] / totals[i]
            log_sums[begin + i] += math.log(totals[i])
