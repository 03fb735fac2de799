"""From derivatives by a descriptor to derivatives by positions: the chain rule through x1 and x2.

`kernels.descriptor` computes a row from the vectors to the neighbours. Here is the way back. The derivative of a sorted
list is that of its entries, each in its place. An entry A_jl = u_j u_l / r_jl of the matrix behind x2 is in two rows of
it, so it has two places. With u = 1 − r²/r_c² there are no square roots of weights, whose derivative would have no
limit at the cutoff.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .descriptor import NONE, nearest_neighbors
from .jit import kernel

Array = NDArray[Any]


@kernel
def _rank(found: Array, u: Array, n: int, along: Array, values: Array, order: Array, weights: Array) -> None:
    """Add to ``weights[j, l]`` (n, n) the derivative by A_jl as an entry of row j, for all pairs; fill `values`.

    `along` (k - 1,) are the derivatives by x2; `order` (k,) is scratch. ``values[j, l]`` becomes A_jl.
    """
    k = found.shape[0] - 1
    for j in range(n):
        for i in range(j + 1, n):
            dx = found[j, 1] - found[i, 1]
            dy = found[j, 2] - found[i, 2]
            dz = found[j, 3] - found[i, 3]
            values[j, i] = values[i, j] = u[j] * u[i] / np.sqrt(dx * dx + dy * dy + dz * dz)
    for j in range(n):
        m = 0
        for i in range(n):
            if i == j:
                continue
            slot = m
            while slot > 0 and values[j, order[slot - 1]] < values[j, i]:
                order[slot] = order[slot - 1]
                slot -= 1
            order[slot] = i
            m += 1
        for s in range(m):
            weights[j, order[s]] = along[s] / k


@kernel
def _pull_one(
    found: Array, n: int, cutoff: float, along: Array, u: Array, values: Array, order: Array, weights: Array, out: Array
) -> None:
    """Write the derivatives by the vectors to the n neighbours into `out` (k, 3), of those by a block, `along`."""
    k = found.shape[0] - 1
    steep = -2.0 / (cutoff * cutoff)  # ∇u_j = steep · x_j
    for j in range(n):
        u[j] = 1.0 - found[j, 0] / (cutoff * cutoff)
        r = np.sqrt(found[j, 0])
        change = along[j] * (2.0 * u[j] * steep / r - u[j] * u[j] / (r * r * r))
        for c in range(3):
            out[j, c] = change * found[j, 1 + c]
    _rank(found, u, n, along[k:], values, order, weights)
    for j in range(n):
        for i in range(j + 1, n):
            weight = weights[j, i] + weights[i, j]
            if weight == 0.0:
                continue
            value = values[j, i]
            inverse = value / (u[j] * u[i])  # 1/r_ji
            apart = -weight * value * inverse * inverse
            at_j, at_i = weight * steep * u[i] * inverse, weight * steep * u[j] * inverse
            for c in range(3):
                along_pair = apart * (found[j, 1 + c] - found[i, 1 + c])
                out[j, c] += at_j * found[j, 1 + c] + along_pair
                out[i, c] += at_i * found[i, 1 + c] - along_pair


@kernel
def pull_back(
    points: Array,
    kinds: Array,
    wanted: Array,
    centres: Array,
    bins: tuple[Array, Array, Array, Array, Array],
    k: int,
    cutoff: float,
    column: int,
    along: Array,
    first: int,
    last: int,
    who: Array,
    out: Array,
    strain: Array,
) -> None:
    """Write the derivatives by the vectors to the neighbours of ``centres[first:last]``.

    The first arguments are those of `descriptor.describe`; `along` (n, d) are the derivatives by its rows. `who` (n,
    blocks · k) gets the point of each neighbour, −1 where there is none; `out` (n, blocks · k, 3) the derivatives; and
    `strain` (n, 3, 3) the sums Σ_j x_j ⊗ derivative_j: the derivative by a strain of the cell and all that is in it.
    """
    ranges = np.empty((9, 2), np.int64)
    found = np.empty((k + 1, 5))
    u, order = np.empty(k), np.empty(k, np.int64)
    values, weights = np.empty((k, k)), np.empty((k, k))
    for i in range(first, last):
        kind = kinds[centres[i]]
        who[i, :] = -1
        strain[i, :, :] = 0.0
        for b in range(wanted.shape[1]):
            if wanted[kind, b] == NONE:
                continue
            n = nearest_neighbors(centres[i], points, kinds, wanted[kind, b], bins, cutoff, ranges, found)
            begin, block = column + b * (2 * k - 1), out[i, b * k : (b + 1) * k]
            _pull_one(found, n, cutoff, along[i, begin : begin + 2 * k - 1], u, values, order, weights, block)
            for j in range(n):
                who[i, b * k + j] = int(found[j, 4])
                for a in range(3):
                    for c in range(3):
                        strain[i, a, c] += found[j, 1 + a] * block[j, c]


@kernel
def add_up(centres: Array, who: Array, derivatives: Array, owner: Array, out: Array) -> None:
    """Add the derivatives of `pull_back` to the atoms' own, `out` (atoms, 3): the order is fixed, whatever the threads.

    `centres` (n,) are the atoms of the centres, and `owner` (points,) says which atom a point belongs to.
    """
    for i in range(who.shape[0]):
        for j in range(who.shape[1]):
            if who[i, j] < 0:
                continue
            atom = owner[who[i, j]]
            for c in range(3):
                out[atom, c] += derivatives[i, j, c]
                out[centres[i], c] -= derivatives[i, j, c]
