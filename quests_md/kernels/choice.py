"""Choosing frames one by one, each the best beside those chosen before: lazily, as scores only fall.

The score of a frame is that of its best item. A frame that is chosen lowers scores and raises none, so a score that
has not yet seen the last of the chosen frames is an upper bound. Bounds are kept in a heap: only what is on top of it
is brought up to date, some chosen frames at a time, until what is on top has seen all of them. That is the choice
that all scores would give, for a fraction of the sums.

Two scores are known. `NOVELTY`: items are environments; the score is the entropy of the frame plus dH of the
environment against what is chosen. `DISTANCE`: items are frames; the score is the mean distance between environments
of the frame and of the nearest chosen one.

Sums are by differences, in double precision. Those that are at least 1 (of rows over themselves) are plain sums of
terms; others are kept relative to their largest term, so that nothing underflows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._jit import kernel
from ._simd_sum import exp_negative

Array = NDArray[Any]

NOVELTY, DISTANCE = 0, 1
TIE = 1e-10  # scores that differ by less, relative to max(1, |score|), are equal but for rounding: the first frame wins
TIE_OF_DISTANCES = 1e-12  # the same of distances, relative to these
CHUNK = 32  # rows that are looked at together
STEP = 256  # rows of chosen frames, about, by which a bound is brought up to date at a time
PART = 256  # rows whose sums over each other are one task: a result must not depend on the threads
_NOTHING = -60.0  # ln of a term beside the largest that is not worth its power


class Chosen(NamedTuple):
    """The frames that are chosen, in their order."""

    rows: Array  # (room, d and zeros)
    ends: Array  # (n_frames + 1,) the rows of the first i of them are those before ends[i]
    scale: float  # 1 / 2h²


class Items(NamedTuple):
    """What is scored, and the heap of it."""

    rows: Array  # (n_env, d) the environments of all frames
    offsets: Array  # (n_frames + 1,) first row of every frame
    kind: int  # NOVELTY or DISTANCE
    frame: Array  # (n_items,)
    bonus: Array  # (n_frames,) what is added to the score of an item of this frame
    bound: Array  # (n_items,)
    sums: Array  # (n_items, 2) of NOVELTY: the kernel sum is the second · e^first
    seen: Array  # (n_items,) how many chosen frames the bound has seen
    taken: Array  # (n_frames,) whether it is chosen
    heap: Array  # (n_items,) items, no bound above that of its parent
    size: Array  # (1,) how many of them are in the heap
    tied: Array  # (n_items,) room to work in
    room: Array  # (CHUNK + d and zeros,)


@kernel
def _pad(row: Array, out: Array) -> None:
    for c in range(len(row)):
        out[c] = row[c]


@kernel
def _squares(query: Array, rows: Array, begin: int, count: int, out: Array) -> None:
    """Write the squared distances of a query from `count` rows into `out`."""
    for j in range(count):
        squared = 0.0
        for c in range(len(query)):
            squared += (query[c] - rows[begin + j, c]) ** 2
        out[j] = squared


# -- the heap ----------------------------------------------------------------------------------------------------------


@kernel
def _sink(items: Items, item: int) -> None:
    """Put an item where the top of the heap was, and let it sink."""
    heap, bound, size, place = items.heap, items.bound, items.size[0], 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and bound[heap[child + 1]] > bound[heap[child]]:
            child += 1
        if bound[heap[child]] <= bound[item]:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = item


@kernel
def _drop(items: Items) -> None:
    """Take the top off the heap."""
    items.size[0] -= 1
    if items.size[0] > 0:
        _sink(items, items.heap[items.size[0]])


@kernel
def _put(items: Items, item: int) -> None:
    """Put an item into the heap."""
    heap, bound, place = items.heap, items.bound, items.size[0]
    items.size[0] += 1
    while place > 0 and bound[heap[(place - 1) // 2]] < bound[item]:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = item


# -- scores ------------------------------------------------------------------------------------------------------------


@kernel
def _see_novelty(items: Items, chosen: Chosen, item: int, n_chosen: int) -> None:
    """Bring the bound of an environment up to date by about STEP rows."""
    ends, last = chosen.ends, items.seen[item]
    first = ends[last]
    while last < n_chosen and ends[last] - first < STEP:
        last += 1
    squared, query = items.room[:CHUNK], items.room[CHUNK:]
    _pad(items.rows[item], query)
    top, total = items.sums[item, 0], items.sums[item, 1]
    for begin in range(first, ends[last], CHUNK):
        count = min(CHUNK, ends[last] - begin)
        _squares(query, chosen.rows, begin, count, squared)
        nearest = squared[0]
        for j in range(1, count):
            nearest = min(nearest, squared[j])
        exponent = -chosen.scale * nearest
        if exponent < top + _NOTHING:
            continue
        if exponent > top:
            total *= math.exp(top - exponent)
            top = exponent
        for j in range(count):
            total += exp_negative(-chosen.scale * squared[j] - top)
    items.sums[item, 0], items.sums[item, 1], items.seen[item] = top, total, last
    items.bound[item] = items.bonus[items.frame[item]] - (top + math.log(total))


@kernel
def _see_distance(items: Items, chosen: Chosen, item: int) -> None:
    """Bring the bound of a frame up to date by one chosen frame."""
    first, last = chosen.ends[items.seen[item]], chosen.ends[items.seen[item] + 1]
    squared, query, total = items.room[:CHUNK], items.room[CHUNK:], 0.0
    frame = items.frame[item]
    for i in range(items.offsets[frame], items.offsets[frame + 1]):
        _pad(items.rows[i], query)
        for begin in range(first, last, CHUNK):
            count = min(CHUNK, last - begin)
            _squares(query, chosen.rows, begin, count, squared)
            for j in range(count):
                total += math.sqrt(squared[j])
    mean = total / ((items.offsets[frame + 1] - items.offsets[frame]) * (last - first))
    items.bound[item] = min(items.bound[item], mean)
    items.seen[item] += 1


@kernel
def pick(items: Items, chosen: Chosen, n_chosen: int) -> int:
    """Take the frame of the largest score beside the first `n_chosen` chosen ones; −1 if none is left."""
    best, n_tied, least = -1, 0, -np.inf
    while items.size[0] > 0:
        item = items.heap[0]
        frame = items.frame[item]
        if items.taken[frame]:
            _drop(items)
            continue
        if items.bound[item] < least:
            break
        if items.seen[item] < n_chosen:
            if items.kind == NOVELTY:
                _see_novelty(items, chosen, item, n_chosen)
            else:
                _see_distance(items, chosen, item)
            _sink(items, item)
            continue
        if best < 0:
            best, score = frame, items.bound[item]
            least = score - (TIE * max(1.0, abs(score)) if items.kind == NOVELTY else TIE_OF_DISTANCES * score)
        best = min(best, frame)
        _drop(items)
        items.tied[n_tied] = item
        n_tied += 1
    for k in range(n_tied):
        if items.frame[items.tied[k]] != best:
            _put(items, items.tied[k])
    if best >= 0:
        items.taken[best] = True
    return best


# -- sums of rows over each other, at least 1 --------------------------------------------------------------------------


@kernel
def frame_entropies(rows: Array, offsets: Array, scale: float, width: int, first: int, last: int, out: Array) -> None:
    """Write the entropy of each of the frames first..last against itself into `out`; nan where it has no rows."""
    squared = np.empty(CHUNK)
    for frame in range(first, last):
        n = offsets[frame + 1] - offsets[frame]
        padded, sums, logs = np.zeros((n, width)), np.ones(n), 0.0
        for i in range(n):
            _pad(rows[offsets[frame] + i], padded[i])
        for i in range(n):
            for begin in range(i + 1, n, CHUNK):
                count = min(CHUNK, n - begin)
                _squares(padded[i], padded, begin, count, squared)
                for j in range(count):
                    term = exp_negative(-scale * squared[j])
                    sums[i] += term
                    sums[begin + j] += term
            logs += math.log(sums[i])
        out[frame] = math.log(n) - logs / n if n > 0 else np.nan


@kernel
def join(chosen: Chosen, frame: int, first: int, last: int, sums: Array, parts: Array) -> None:
    """Add the rows of the chosen frame number `frame` to the sums of all rows up to it over each other.

    Of the parts first..last of these rows, `PART` rows each: `sums` (room,) receives what each has from the new rows,
    and `parts` (n_parts, new rows) what the new rows have from all old ones of the part.
    """
    rows, begin, end = chosen.rows, chosen.ends[frame], chosen.ends[frame + 1]
    squared = np.empty(CHUNK)
    for part in range(first, last):
        mine = parts[part]
        mine[:] = 0.0
        for i in range(part * PART, min(end, (part + 1) * PART)):
            total, is_old = 0.0, i < begin
            for start in range(begin, end, CHUNK):
                count = min(CHUNK, end - start)
                _squares(rows[i], rows, start, count, squared)
                for j in range(count):
                    squared[j] = exp_negative(-chosen.scale * squared[j])
                    total += squared[j]
                if is_old:
                    for j in range(count):
                        mine[start - begin + j] += squared[j]
            sums[i] += total


@kernel
def covered_by(
    rows: Array, chosen: Chosen, n_chosen: int, enough: float, first: int, last: int, out: Array
) -> None:
    """Write how many chosen frames it takes until the kernel sum of the rows first..last reaches `enough` into `out`.

    `n_chosen` + 1 where all of them are too few.
    """
    ends, squared, query = chosen.ends, np.empty(CHUNK), np.zeros(chosen.rows.shape[1])
    for i in range(first, last):
        _pad(rows[i], query)
        total, frame = 0.0, 0
        while total < enough and frame < n_chosen:
            for begin in range(ends[frame], ends[frame + 1], CHUNK):
                count = min(CHUNK, ends[frame + 1] - begin)
                _squares(query, chosen.rows, begin, count, squared)
                for j in range(count):
                    total += exp_negative(-chosen.scale * squared[j])
            frame += 1
        out[i] = frame if total >= enough else n_chosen + 1
