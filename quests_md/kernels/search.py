"""Certified bounds on kernel sums: is dH(q) > t? The answer takes as few distances as possible, and is always right.

The references lie in the order of a tree. `LEAF` rows that follow each other are a leaf, `FAN` leaves that follow each
other have a parent, and so on. Take a node with n references r_j, their mean c, and the largest distance R and the mean
square distance σ² from c. One distance D = ‖q − c‖ then tells two bounds:

- n·exp(−(D² + σ²)/2h²) ≤ Σ_j exp(−‖q − r_j‖²/2h²), by Jensen's inequality, because exp is convex and the mean of
  ‖q − r_j‖² is D² + σ²;
- Σ_j exp(−‖q − r_j‖²/2h²) ≤ n·exp(−max(0, D − R)²/2h²), by the triangle inequality.

So one node near q can prove dH(q) ≤ t. The node that proved it for an atom mostly proves it again hundreds of steps
later. If no node does, nodes are replaced by their children, or by the terms of their rows, until the bounds on the
whole sum decide. If this takes too long, the query stays undecided, and needs the exact sum.

Distances are computed in single precision. Every bound is widened by their largest error (`widths`). It must clear the
threshold by more than the error of the exact sum in double precision. So the answer is the same, whoever asks and how.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._simd import BYTES
from ._simd_sum import FEWEST, exp_negative, squared_distances, squared_distances_plain
from .blocks import LEAF
from .jit import inlined, kernel

Array = NDArray[Any]

FAN = 4  # children of a node
_UNIT = 2.0**-24  # rounding of single precision
_SLACK = 1e-9  # nats, relative to max(1, |threshold|): a bound must clear it by this; exact sums err by 1e-10
# The largest ln(bound / sum at the threshold). A larger one decides nothing. And it is subtracted again later: its
# rounding would then be larger than the rest.
_CLAMP = 5.0
_TOWARDS_LOWER = 0.25  # the share of the lower bound in the key that says which node is opened next (found by trying)
# Opening a node takes as long as about 200 terms of an exact sum. If a hundredth of the tree does not decide, the query
# is so near the threshold that the whole tree would not.
_BUDGET = 32
_ROWS_PER_NODE = 512
_LEAST = 8  # nodes that are opened for a query that the full budget did not decide a while ago
_UNDECIDED = -17  # the memory of such a query. It is counted up: at -1 the full budget is tried again


class Tree(NamedTuple):
    """References in the order of a tree, and its nodes, leaves first."""

    rows: Array  # (n, d) float32, less the mean of all
    centres: Array  # (nodes, d) float32, means of the nodes' rows
    radius: Array  # (nodes,) float32 largest distance of a row from the node's centre, rounded up
    spread: Array  # (nodes,) float32 mean square distance from the centre, rounded up
    first: Array  # (levels + 1,) first node of every level; level 0 are the leaves
    log_rows: Array  # (nodes,) ln of the number of rows


class Question(NamedTuple):
    """What is asked about every query, and how."""

    centre: Array  # (d,) what was subtracted from the rows
    threshold: float
    sharpness: float  # 1/2h²
    relative: float  # the largest relative error of a computed distance, as `widths` says
    absolute: float  # the absolute error on top of it, in 1/Å
    budget: int  # nodes that may be opened for one query
    vector: bool  # whether vector code is used, or plain loops


class _Room(NamedTuple):
    """Scratch arrays for one query. Bounds are relative to exp(−threshold)."""

    query: Array  # (d,) float32
    squared: Array  # (LEAF,) float32
    node: Array  # (budget · FAN,) heap of the nodes that wait to be opened
    key: Array  # the order of the heap, the largest on top
    lower: Array  # lower and upper bounds of the sums over these nodes
    upper: Array
    known: Array  # (2,) lower and upper bound of the sum over the opened leaves
    waiting: Array  # (2,) the same over the nodes on the heap


def levels(n: int) -> NDArray[np.int64]:
    """Return the first node of every level of a tree over `n` rows, then the number of nodes."""
    counts = [-(-n // LEAF)]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // FAN))
    return np.cumsum([0, *counts], dtype=np.int64)


def empty_tree(rows: Array) -> Tree:
    """Make room for the tree over `rows`, which are in its order. `measure_nodes` fills it, leaves first."""
    n, d = rows.shape
    nodes = int(levels(n)[-1])
    return tree_of(rows, np.empty((nodes, d), np.float32), np.empty(nodes, np.float32), np.empty(nodes, np.float32))


def tree_of(rows: Array, centres: Array, radius: Array, spread: Array) -> Tree:
    """Make a tree whose nodes are known."""
    first = levels(len(rows))
    sizes = LEAF * FAN ** np.arange(len(first) - 1)
    count = np.concatenate([np.full(n, size) for n, size in zip(np.diff(first), sizes, strict=True)])
    count[first[1:] - 1] -= np.diff(first) * sizes - len(rows)  # the last node of a level may be short
    return Tree(rows, centres, radius, spread, first, np.log(count))


def question(centre: Array, tree: Tree, threshold: float, bandwidth: float) -> Question:
    """Make the question to a tree."""
    root = len(tree.log_rows) - 1
    longest = float(np.linalg.norm(tree.centres[root])) + float(tree.radius[root])
    relative, absolute = widths(1.001 * longest, tree.rows.shape[1])
    budget = max(_BUDGET, len(tree.rows) // _ROWS_PER_NODE)
    vector = BYTES > 0 and tree.rows.shape[1] >= FEWEST
    return Question(centre, float(threshold), 0.5 / bandwidth**2, relative, absolute, budget, vector)


@kernel
def measure_nodes(tree: Tree, level: int, first: int, last: int) -> None:
    """Fill in centre, radius and spread of the nodes first..last (counted within `level`)."""
    n, d = tree.rows.shape
    size = LEAF * FAN**level
    mean = np.empty(d)
    for i in range(first, last):
        begin, end = i * size, min(n, (i + 1) * size)
        node = tree.first[level] + i
        mean[:] = 0.0
        for j in range(begin, end):
            for c in range(d):
                mean[c] += tree.rows[j, c]
        for c in range(d):
            tree.centres[node, c] = mean[c] / (end - begin)
        largest, total = 0.0, 0.0
        for j in range(begin, end):
            squared = 0.0
            for c in range(d):
                squared += (np.float64(tree.rows[j, c]) - np.float64(tree.centres[node, c])) ** 2
            largest, total = max(largest, squared), total + squared
        # Single precision may round down, by less than this.
        tree.radius[node] = math.sqrt(largest) * (1.0 + 2.0 * _UNIT)
        tree.spread[node] = total / (end - begin) * (1.0 + 2.0 * _UNIT)


@inlined
def distances(query: Array, rows: Array, first: int, n: int, out: Array, vector: bool) -> None:
    if vector:
        squared_distances(query, rows, first, n, out)
    else:
        squared_distances_plain(query, rows, first, n, out)


@inlined
def _load(row: Array, centre: Array, out: Array) -> None:
    """Write a query less the centre into `out`, in single precision."""
    for c in range(len(row)):
        out[c] = row[c] - centre[c]


def widths(longest: float, d: int) -> tuple[float, float]:
    """Return the largest error of a computed distance D, relative and absolute (1/Å), if no row is longer.

    A difference, its square and the sum of d squares round d + 3 times, each time by at most 2⁻²⁴ of D²; D errs by half
    of that. Before, the query and the mean of a node were rounded, each by 2⁻²⁴ of its norm, and |q| ≤ D + longest.
    """
    return 0.5 * (d + 8) * _UNIT, 2.1 * _UNIT * longest


@inlined
def _lower(squared: float, node: int, tree: Tree, ask: Question) -> float:
    """Return a lower bound of ln(sum over a node), relative to the threshold, from its computed distance²."""
    far = math.sqrt(squared) * (1.0 + ask.relative) + ask.absolute
    return float(tree.log_rows[node] + ask.threshold - ask.sharpness * (far * far + tree.spread[node]))


@inlined
def _upper(squared: float, node: int, tree: Tree, ask: Question) -> float:
    """Return an upper bound of ln(sum over a node), relative to the threshold, from its computed distance²."""
    near = max(0.0, math.sqrt(squared) * (1.0 - ask.relative) - ask.absolute - tree.radius[node])
    return float(tree.log_rows[node] + ask.threshold - ask.sharpness * near * near)


@inlined
def _push(room: _Room, size: int, key: float, node: int, lower: float, upper: float) -> None:
    """Add a node to a heap of `size`; its bounds are given as logarithms."""
    i = size
    while i > 0 and room.key[(i - 1) // 2] < key:
        _move(room, (i - 1) // 2, i)
        i = (i - 1) // 2
    room.key[i], room.node[i] = key, node
    room.lower[i], room.upper[i] = math.exp(min(lower, _CLAMP)), math.exp(min(upper, _CLAMP))
    room.waiting[0] += room.lower[i]
    room.waiting[1] += room.upper[i]


@inlined
def _pop(room: _Room, last: int) -> None:
    """Remove the top of a heap of size `last` + 1."""
    room.waiting[0] -= room.lower[0]
    room.waiting[1] -= room.upper[0]
    i, key = 0, room.key[last]
    while 2 * i + 1 < last:
        child = 2 * i + 1
        if child + 1 < last and room.key[child + 1] > room.key[child]:
            child += 1
        if room.key[child] <= key:
            break
        _move(room, child, i)
        i = child
    _move(room, last, i)


@inlined
def _move(room: _Room, source: int, target: int) -> None:
    room.key[target], room.node[target] = room.key[source], room.node[source]
    room.lower[target], room.upper[target] = room.lower[source], room.upper[source]


@inlined
def _leaf_sum(leaf: int, room: _Room, tree: Tree, ask: Question) -> tuple[float, float]:
    """Return lower and upper bound of the sum over all rows of a leaf, relative to the threshold."""
    n = min(LEAF, len(tree.rows) - leaf * LEAF)
    distances(room.query, tree.rows, leaf * LEAF, n, room.squared, ask.vector)
    lower, upper = 0.0, 0.0
    for j in range(n):
        squared = np.float64(room.squared[j])
        # |(D(1 ± a) ± b)² − D²| is at most this. `exp_negative` is right to 1e-13, and returns e⁻⁶⁰ for anything less:
        # far below the slack.
        wrong = 2.1 * (ask.relative * squared + ask.absolute * math.sqrt(squared)) + ask.absolute**2
        wrong = ask.sharpness * wrong + 1e-12
        term = exp_negative(min(ask.threshold - ask.sharpness * squared, _CLAMP))
        lower += term * max(0.0, 1.0 - wrong)
        upper += term * (1.0 + wrong + wrong * wrong if wrong < 1.5 else np.inf)
    return lower, upper


@inlined
def _open(node: int, size: int, best: float, best_node: int, room: _Room, tree: Tree, ask: Question) -> Any:
    """Push the children of a node onto the heap; return its new size, and the best bound of one node and that node."""
    level = 1
    while node >= tree.first[level + 1]:
        level += 1
    first = tree.first[level - 1] + (node - tree.first[level]) * FAN
    n = min(FAN, tree.first[level] - first)
    distances(room.query, tree.centres, first, n, room.squared, ask.vector)
    for i in range(n):
        squared = np.float64(room.squared[i])
        lower, upper = _lower(squared, first + i, tree, ask), _upper(squared, first + i, tree, ask)
        if lower > best:
            best, best_node = lower, first + i
        _push(room, size + i, _TOWARDS_LOWER * lower + (1.0 - _TOWARDS_LOWER) * upper, first + i, lower, upper)
    return size + n, best, best_node


@kernel
def _decide(room: _Room, tree: Tree, ask: Question, budget: int) -> tuple[float, int, float]:
    """Bound the sum of one query until the threshold is clear, by opening at most `budget` nodes.

    It returns an upper bound of dH − threshold (negative: dH does not exceed it; inf: it does; nan: undecided), the
    node whose single bound was the best, and the lower bound of the sum that it came to.
    """
    slack = _SLACK * max(1.0, abs(ask.threshold))
    best, best_node, size, node = -np.inf, -1, 0, len(tree.radius) - 1
    known, waiting = room.known, room.waiting  # lower and upper bound of the sum: over opened leaves, over the heap
    known[:], waiting[:] = 0.0, 0.0
    for _ in range(budget):
        if node < tree.first[1]:
            lower, upper = _leaf_sum(node, room, tree, ask)
            known[0] += lower
            known[1] += upper
        else:
            size, best, best_node = _open(node, size, best, best_node, room, tree, ask)
        lower = known[0] + waiting[0]
        if best > slack:
            return -best, best_node, lower
        if lower > 1.0 + 2.0 * slack:
            return slack - math.log(lower), best_node, lower
        if known[1] + waiting[1] < 1.0 - 2.0 * slack:
            return np.inf, best_node, lower
        if size == 0:
            break
        node = room.node[0]
        size -= 1
        _pop(room, size)
    return np.nan, best_node, known[0] + waiting[0]


@kernel
def upper_bounds(
    query: Array, tree: Tree, ask: Question, memory: Array, first: int, last: int, out: Array, guess: Array
) -> None:
    """Write upper bounds of dH of the queries first..last into `out`.

    A bound is at most the threshold if it is proved that dH does not exceed it, and inf if it is proved that it does.
    It is nan if a proof would take longer than the exact sum. `memory` (n_query,) holds the node that certified each
    query last, or any number, and is updated. `guess` receives what dH is at most, whatever the threshold, as far as
    the search came: it tells which queries that are not at most the threshold have the largest dH, probably.
    """
    most = FAN * ask.budget
    room = _Room(
        np.empty(tree.rows.shape[1], np.float32),
        np.empty(LEAF, np.float32),
        np.empty(most, np.int64),
        np.empty(most),
        np.empty(most),
        np.empty(most),
        np.empty(2),
        np.empty(2),
    )
    slack = _SLACK * max(1.0, abs(ask.threshold))
    for i in range(first, last):
        _load(query[i], ask.centre, room.query)
        node, lower = memory[i], -np.inf
        if node >= 0 and node < len(tree.log_rows):
            distances(room.query, tree.centres, node, 1, room.squared, ask.vector)
            lower = _lower(np.float64(room.squared[0]), node, tree, ask)
        if lower > slack:
            out[i] = guess[i] = ask.threshold - lower
            continue
        tried = _UNDECIDED <= node < -1
        bound, best, least = _decide(room, tree, ask, min(_LEAST, ask.budget) if tried else ask.budget)
        if bound == np.inf and not np.isfinite(room.query).all():
            bound = np.nan  # a query that is not finite has no distances
        out[i], guess[i] = ask.threshold + bound, ask.threshold - math.log(max(least, 1e-300))
        if bound < 0.0:
            memory[i] = best
        elif np.isnan(bound):
            memory[i] = node + 1 if tried else _UNDECIDED
