"""Choosing frames one by one, each the best after those chosen before. This is lazy, because scores only fall.

The score of a frame is that of its best item. A new chosen frame lowers scores and raises none. So a score that has not
yet seen all chosen frames is an upper bound. A heap holds the bounds. Only the item on its top is brought up to date,
by one chosen frame at a time, until the item on top has seen all chosen frames. This is the choice that all scores
would give, for a fraction of the sums. The chosen frames with the nearest mean rows come first: they lower a bound
most.

There are two scores. `NOVELTY`: items are groups of six environments; the score is the entropy of the frame plus the
largest dH of the six against the chosen frames. `DISTANCE`: items are frames; the score is the mean distance between
environments of the frame and of the nearest chosen frame. It is never smaller than the distance of the means.

Distances are computed from differences, in double precision. The rows are multiplied by √(log₂e / 2h²), so terms are
powers of two, 2^(−‖q − r‖²). Kernel sums are relative to their largest term, so that nothing underflows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._simd_sum import ROWS as ROWS
from ._simd_sum import VECTOR, lanes, squares, squares_plain, sums_exp2, sums_exp2_plain
from .jit import kernel

Array = NDArray[Any]

NOVELTY, DISTANCE = 0, 1
LANES = lanes(8)  # rows of a panel
TIE = 1e-10  # scores that differ by less, relative to max(1, |score|), differ by rounding: the first frame wins
TIE_OF_DISTANCES = 1e-12  # the same for distances, relative to them
PLAIN = None if VECTOR else 1  # None is a type of its own, so the compiler leaves out the plain loops
_PANELS = 256 // LANES  # panels that are summed at a time: they stay in the second cache
_AWAY = 1e13  # the first coordinate in a place without a row, so that its squared distance is large
_SAFE = 1.0 - 1e-6  # makes a distance of means in single precision a lower bound


class Chosen(NamedTuple):
    """The chosen frames, in order. Every frame begins a new panel."""

    panels: Array  # (room, d + 1, LANES): a row in each column; the last coordinate is not used
    groups: Array  # (room, ROWS·(d + 1)): the same rows, six of a frame side by side; the last coordinate is 0
    starts: Array  # (room, 2) how many panels and how many groups the first i frames have
    counts: Array  # (room,) rows of a frame
    frames: Array  # (room,) which frames they are
    factor: float  # √(log₂e / 2h²)


class Items(NamedTuple):
    """The items that have scores, and their heap."""

    rows: Array  # (n_env, d) the environments of all frames
    offsets: Array  # (n_frames + 1,) first row of every frame
    means: Array  # (n_frames, d) their mean rows
    kind: int  # NOVELTY or DISTANCE
    frame: Array  # (n_items,)
    first: Array  # (n_items,) first row
    bonus: Array  # (n_frames,) what is added to the score of an item of this frame
    bound: Array  # (n_items,)
    sums: Array  # (n_env, 2) for NOVELTY: the kernel sum is the second · 2^first
    seen: Array  # (n_items,) how many chosen frames, in the sequence of its frame, the bound has seen
    sequence: Array  # (n_frames, most): the first `most` chosen frames as each frame sees them, nearest first
    nearness: Array  # (n_frames, most): the distances of their means, ascending from `furthest` on
    known: Array  # (n_frames,) how many places of the sequence are filled
    furthest: Array  # (n_frames,) the largest `seen` of its items: up to here the sequence is fixed
    taken: Array  # (n_frames,) whether the frame is chosen
    heap: Array  # (n_items,) items; no bound is above that of its parent
    size: Array  # (1,) how many items are in the heap
    tied: Array  # (n_items,) scratch


class Room(NamedTuple):
    """Scratch arrays."""

    group: Array  # (ROWS·(d + 1),)
    flat: Array  # (ROWS·256,)
    shifts: Array  # (ROWS,)
    sums: Array  # (ROWS,)


@kernel
def _make_room(d: int) -> Room:
    return Room(np.zeros(ROWS * (d + 1)), np.empty(ROWS * _PANELS * LANES), np.zeros(ROWS), np.empty(ROWS))


@kernel
def _load(rows: Array, first: int, last: int, factor: float, group: Array) -> None:
    """Make a group of up to six rows, from `first` on and before `last`."""
    group[:] = 0.0
    for r in range(min(ROWS, last - first)):
        for c in range(rows.shape[1]):
            group[ROWS * c + r] = rows[first + r, c] * factor


@kernel
def pack(rows: Array, factor: float, panels: Array, groups: Array) -> None:
    """Lay out the rows of a frame as panels and as groups."""
    panels[:] = 0.0
    panels[:, 0, :] = _AWAY
    for i in range(len(rows)):
        for c in range(rows.shape[1]):
            panels[i // LANES, c, i % LANES] = rows[i, c] * factor
    for g in range(len(groups)):
        _load(rows, ROWS * g, len(rows), factor, groups[g])


@kernel
def _squares(group: Array, panels: Array, plain: Any, room: Room) -> Array:
    """Return the squared distances (6, rows of the panels) of a group from up to `_PANELS` panels."""
    width = len(panels) * LANES
    out = room.flat[: ROWS * width].reshape(ROWS, width)
    if plain is None:
        squares(group, panels, out)
    else:
        squares_plain(group, panels, out)
    return out


@kernel
def _sum_powers(exponents: Array, plain: Any, room: Room) -> None:
    """Write Σ_j 2^(x_j + shift) of every row into the sums of the room."""
    if plain is None:
        sums_exp2(exponents, room.shifts, room.sums)
    else:
        sums_exp2_plain(exponents, room.shifts, room.sums)


@kernel
def _add_terms(group: Array, panels: Array, begin: int, end: int, plain: Any, room: Room, out: Array) -> None:
    """Add the kernel sums of a group over the panels begin..end to `out`, up to six. They are not far below 1."""
    room.shifts[:] = 0.0
    for first in range(begin, end, _PANELS):
        exponents = _squares(group, panels[first : min(end, first + _PANELS)], plain, room)
        for r in range(ROWS):
            for j in range(exponents.shape[1]):
                exponents[r, j] = -exponents[r, j]
        _sum_powers(exponents, plain, room)
        for r in range(len(out)):
            out[r] += room.sums[r]


# -- the heap ----------------------------------------------------------------------------------------------------------


@kernel
def _sink(items: Items, item: int) -> None:
    """Put an item on top of the heap, and let it sink to its place."""
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
def _learn(items: Items, chosen: Chosen, frame: int, n_chosen: int) -> None:
    """Put the chosen frames that a frame does not know into its sequence."""
    sequence, nearness = items.sequence[frame], items.nearness[frame]
    fixed, mean = items.furthest[frame], items.means[frame]
    for new in range(items.known[frame], min(n_chosen, len(sequence))):
        other, squared = items.means[chosen.frames[new]], 0.0
        for c in range(len(mean)):
            squared += (mean[c] - other[c]) ** 2
        distance, place = np.float32(math.sqrt(squared)), new
        while place > fixed and nearness[place - 1] > distance:
            sequence[place], nearness[place] = sequence[place - 1], nearness[place - 1]
            place -= 1
        sequence[place], nearness[place] = new, distance
        items.known[frame] = new + 1


@kernel
def _see_novelty(items: Items, chosen: Chosen, item: int, other: int, plain: Any, room: Room) -> None:
    """Let the bound of a group of environments see a chosen frame."""
    frame, first, sums, shifts = items.frame[item], items.first[item], items.sums, room.shifts
    n = min(ROWS, items.offsets[frame + 1] - first)
    begin, end = chosen.starts[other, 0], chosen.starts[other + 1, 0]
    _load(items.rows, first, first + n, chosen.factor, room.group)
    shifts[:] = 0.0
    for panel in range(begin, end, _PANELS):
        exponents = _squares(room.group, chosen.panels[panel : min(end, panel + _PANELS)], plain, room)
        for r in range(ROWS):
            largest = -np.inf
            for j in range(exponents.shape[1]):
                exponents[r, j] = -exponents[r, j]
                largest = max(largest, exponents[r, j])
            if r < n:
                if largest > sums[first + r, 0]:
                    sums[first + r, 1] *= 2.0 ** (sums[first + r, 0] - largest)
                    sums[first + r, 0] = largest
                shifts[r] = -sums[first + r, 0]
            else:
                shifts[r] = -largest
        _sum_powers(exponents, plain, room)
        for r in range(n):
            sums[first + r, 1] += room.sums[r]
    least = np.inf
    for r in range(n):
        least = min(least, sums[first + r, 0] + math.log2(sums[first + r, 1]))
    items.bound[item] = items.bonus[frame] - least * math.log(2.0)


@kernel
def _see_distance(items: Items, chosen: Chosen, item: int, other: int, plain: Any, room: Room) -> None:
    """Let the bound of a frame see a chosen frame."""
    frame, total = items.frame[item], 0.0
    end = items.offsets[frame + 1]
    for first in range(items.first[item], end, ROWS):
        _load(items.rows, first, end, chosen.factor, room.group)
        for panel in range(chosen.starts[other, 0], chosen.starts[other + 1, 0], _PANELS):
            last = min(chosen.starts[other + 1, 0], panel + _PANELS)
            squared = _squares(room.group, chosen.panels[panel:last], plain, room)
            n = min(chosen.counts[other] - (panel - chosen.starts[other, 0]) * LANES, squared.shape[1])
            for r in range(min(ROWS, end - first)):
                for j in range(n):
                    total += math.sqrt(squared[r, j])
    mean = total / chosen.factor / ((end - items.first[item]) * chosen.counts[other])
    items.bound[item] = min(items.bound[item], mean)


@kernel
def _see(items: Items, chosen: Chosen, item: int, n_chosen: int, plain: Any, room: Room) -> None:
    """Let the bound of an item see one more chosen frame."""
    frame, place, most = items.frame[item], items.seen[item], items.sequence.shape[1]
    _learn(items, chosen, frame, n_chosen)
    other, nearness = place, 0.0
    if place < most:
        other, nearness = items.sequence[frame, place], items.nearness[frame, place] * _SAFE
    seen = place + 1
    if items.kind == NOVELTY:
        _see_novelty(items, chosen, item, other, plain, room)
    elif place >= most or nearness < items.bound[item]:
        _see_distance(items, chosen, item, other, plain, room)
    else:
        seen = min(n_chosen, most)  # all others in the sequence are farther away
    items.seen[item] = seen
    items.furthest[frame] = max(items.furthest[frame], min(seen, most))


@kernel
def pick(items: Items, chosen: Chosen, n_chosen: int, plain: Any) -> int:
    """Take the frame with the largest score after the first `n_chosen` chosen frames; −1 if none is left."""
    best, n_tied, least, room = -1, 0, -np.inf, _make_room(items.rows.shape[1])
    while items.size[0] > 0:
        item = items.heap[0]
        frame = items.frame[item]
        if items.taken[frame]:
            _drop(items)
            continue
        if items.bound[item] < least:
            break
        if items.seen[item] < n_chosen:
            _see(items, chosen, item, n_chosen, plain, room)
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


# -- sums of what is chosen --------------------------------------------------------------------------------------------


@kernel
def frame_entropies(rows: Array, offsets: Array, factor: float, plain: Any, first: int, last: int, out: Array) -> None:
    """Write the entropy of each of the frames first..last against itself into `out`; nan if it has no rows."""
    d = rows.shape[1]
    room = _make_room(d)
    for frame in range(first, last):
        begin, end = offsets[frame], offsets[frame + 1]
        n, logs = end - begin, 0.0
        panels, groups = np.empty((-(-n // LANES), d + 1, LANES)), np.empty((-(-n // ROWS), ROWS * (d + 1)))
        pack(rows[begin:end], factor, panels, groups)
        sums = np.zeros(n)
        for g in range(len(groups)):
            _add_terms(groups[g], panels, 0, len(panels), plain, room, sums[ROWS * g : ROWS * (g + 1)])
        for i in range(n):
            logs += math.log(sums[i])
        out[frame] = math.log(n) - logs / n if n > 0 else np.nan


@kernel
def join(chosen: Chosen, frame: int, plain: Any, first: int, last: int, sums: Array) -> None:
    """Add the chosen frame number `frame` to the kernel sums of all chosen rows, up to this frame, over each other.

    It does the groups first..last; `sums` (room, 6) has a row for each. Groups of earlier frames are summed over the
    new rows, those of the new frame over all rows.
    """
    room, end = _make_room(chosen.panels.shape[1] - 1), chosen.starts[frame + 1, 0]
    new = min(last, max(first, chosen.starts[frame, 1]))
    for low, high, begin in ((first, new, chosen.starts[frame, 0]), (new, last, 0)):
        for panel in range(begin, end, _PANELS):  # all groups pass while the panels are in the second cache
            for g in range(low, high):
                _add_terms(chosen.groups[g], chosen.panels, panel, min(end, panel + _PANELS), plain, room, sums[g])


@kernel
def covered_by(
    rows: Array, chosen: Chosen, n_chosen: int, enough: float, plain: Any, first: int, last: int, out: Array
) -> None:
    """Write into `out` how many chosen frames it takes until the kernel sum of a row reaches `enough`.

    It does the rows first..last, and writes `n_chosen` + 1 if all chosen frames are too few.
    """
    room = _make_room(rows.shape[1])
    for begin in range(first, last, ROWS):
        n = min(ROWS, last - begin)
        _load(rows, begin, last, chosen.factor, room.group)
        sums, missing = np.zeros(n), n
        out[begin : begin + n] = n_chosen + 1
        for frame in range(n_chosen):
            if missing == 0:
                break
            _add_terms(
                room.group, chosen.panels, chosen.starts[frame, 0], chosen.starts[frame + 1, 0], plain, room, sums
            )
            for r in range(n):
                if sums[r] >= enough and out[begin + r] > n_chosen:
                    out[begin + r] = frame + 1
                    missing -= 1
