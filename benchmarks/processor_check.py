"""What one process checks, with kernels for the processor that the environment names. `processors` starts it."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from quests_md.information import log_kernel_sum, pack
from quests_md.kernels import _simd, _simd_panel, _simd_sum, kernel_sum, search
from quests_md.kernels._simd_panel import NORMS
from quests_md.kernels._simd_sum import ROWS
from quests_md.kernels.blocks import TILE, Blocks
from quests_md.kernels.jit import kernel
from quests_md.kernels.kernel_sum import BLOCK

Array = NDArray[Any]

H = 0.015
D = 63  # columns
PROMISED = {"single": (1e-5, 1e-6), "double": (1e-10, 1e-10)}  # absolute and relative, in nats
THRESHOLDS = 48


def main() -> None:
    """Check everything and print it as JSON."""
    single_only = "--single" in sys.argv
    reference, query = _rows()
    exponents = -0.5 * (cdist(query, reference.astype(float)) / H) ** 2
    top = exponents.max(axis=1, keepdims=True)
    exact = -(np.log(np.exp(exponents - top).sum(axis=1)) + top[:, 0])
    result: dict[str, Any] = {"bits": 8 * _simd.BYTES, **_decide(query, reference, exact)}
    for precision in ("single",) if single_only else ("single", "double"):
        layout = pack(reference, H, precision, order=np.arange(len(reference)), threads=1)
        values = -log_kernel_sum(query, reference, H, blocks=layout, precision=precision, threads=1)
        absolute, relative = PROMISED[precision]
        result[precision] = {
            "error": float(np.max(np.abs(values - exact) / np.maximum(absolute, relative * np.abs(exact)))),
            "rounding": _round(layout),
            **_skip(query, layout, exponents / np.log(2.0)),
        }
        if precision == "double":
            result["values"] = values[::100].tolist()
    print(json.dumps(result))


def _rows() -> tuple[Array, Array]:
    """Return float32 references in clusters, one after the other, and queries from among them to far off."""
    rng = np.random.default_rng(14)
    spread = np.geomspace(0.012, 0.0004, D)  # a few columns vary much more than the others, as in descriptors
    centres = rng.normal(0.0, 3.0, (12, D)) * spread
    reference = np.vstack([c + rng.normal(0.0, rng.uniform(0.3, 1.0), (500, D)) * spread for c in centres])
    away = np.geomspace(1e-3, 6.0, 2400)[:, None] * rng.normal(size=(2400, D)) * spread
    return reference.astype(np.float32), reference[rng.integers(len(reference), size=2400)] + away


def _decide(query: Array, reference: Array, exact: Array) -> dict[str, int]:
    """Count decisions "dH > threshold?", those that the bounds left open, and those that contradict float64."""
    tree = search.empty_tree(reference)
    for level, nodes in enumerate(np.diff(tree.first)):
        search.measure_nodes(tree, level, 0, nodes)
    counts = {"decisions": 0, "open": 0, "wrong": 0}
    for threshold in np.quantile(exact, np.linspace(0.01, 0.99, THRESHOLDS)) + 1e-7:
        ask = search.question(np.zeros(D), tree, float(threshold), H)
        out, memory = np.empty(len(query)), np.full(len(query), -1, np.int32)
        search.upper_bounds(query, tree, ask, memory, 0, len(query), out, np.empty(len(query)))
        decided = ~np.isnan(out)
        wrong = ((out > threshold) != (exact > threshold)) | (out < exact - 1e-9 * np.maximum(1.0, np.abs(exact)))
        counts["decisions"] += int(decided.sum())
        counts["open"] += int((~decided).sum())
        counts["wrong"] += int((wrong & decided).sum())
    return counts


def _skip(query: Array, layout: Blocks, exponents: Array) -> dict[str, int]:
    """Count blocks that are left out of sums, and queries from whose sum all that is left out takes more than it may.

    Terms are left out with their block, with their panel, or alone: all that are small enough.
    """
    n = len(layout.tiles)
    queries, room = kernel_sum.make_queries(BLOCK, layout), kernel_sum.make_room(BLOCK, layout)
    counts = {"blocks": 0, "left out": 0, "products": 0, "too much": 0}
    for first in range(0, len(query), BLOCK):
        queries.centred[:, :D] = query[first : first + BLOCK]
        kernel_sum.prepare(BLOCK, queries, layout, -np.inf, room)
        part = exponents[first : first + BLOCK]
        terms = np.exp2(part - part.max(axis=1, keepdims=True))
        way = queries.way[:, :n]
        away = np.repeat(way == kernel_sum.SKIP, TILE, axis=1)[:, : part.shape[1]]
        away |= part <= queries.drop[:, None] - 1e-6
        lost = (terms * away).sum(axis=1) / terms.sum(axis=1)
        counts["blocks"] += BLOCK * n
        counts["left out"] += int((way == kernel_sum.SKIP).sum())
        counts["products"] += int((way == kernel_sum.PANELS).sum())
        counts["too much"] += int((lost > layout.negligible).sum())
    return counts


def _round(layout: Blocks) -> float:
    """Return the largest error of a term over what is allowed for, of rows that were made to round much.

    All entries of a row are equal, so that all partial sums grow: many roundings go the same way. Every panel holds one
    reference.
    """
    rng, largest, dtype = np.random.default_rng(3), 0.0, layout.tiles.dtype
    _, panels, _, width = layout.tiles.shape
    power = _simd_sum.EXP2_ERROR["short" if dtype == np.float32 else "double"] if layout.vector else 0.0
    for _ in range(100):
        query, reference = rng.uniform(0.1, 0.2, (ROWS, 1)), rng.uniform(0.1, 0.2, (panels, 1))
        a, b = (np.repeat(values, D, axis=1).astype(dtype) for values in (query, reference))
        tile = np.zeros((panels, D + NORMS, width), dtype)
        tile[:, 0], tile[:, NORMS:, 0], tile[:, 0, 0] = -1e30, b, 0.0
        norm = 0.04 * D  # more than any product: the exponent of all coordinates is no larger than that of the first
        terms = _add(a, tile, norm, layout.first, layout.vector)
        wide = a.astype(np.longdouble), b.astype(np.longdouble)
        allowed = (np.abs(a) * layout.weights) @ np.abs(b).T + layout.of_norms * norm
        wrong = np.abs(np.log2(terms.astype(np.longdouble)) - (wide[0] @ wide[1].T - norm))
        largest = max(largest, float(np.max(wrong / (allowed + power / np.log(2.0) + 4 * np.finfo(dtype).eps))))
    return largest


def _add(a: Array, tile: Array, norm: float, first: int, vector: bool) -> Array:
    """Return the term (6, panels) of each query with the only reference of each panel; `norm` is one of the rest."""
    queries, numbers, out = a.T.ravel().copy(), np.zeros((3, ROWS)), np.empty((ROWS, len(tile)))
    numbers[1], numbers[2] = norm, -60.0
    for panel in range(len(tile)):
        if vector:
            sums = np.zeros((1, ROWS * tile.shape[2] // 2), tile.dtype)
            _add_panels(queries[None], np.ones(1, np.int8), numbers[None], tile[panel][None], first, sums)
            out[:, panel] = sums.reshape(ROWS, -1).sum(axis=1)
        else:
            exponents = np.empty(tile.shape[2])
            for r in range(ROWS):
                _simd_panel.exponents_plain(queries, r, numbers, tile[panel], D, first, exponents)
                out[r, panel] = np.exp2(exponents[0])
    return out


@kernel
def _add_panels(queries: Array, active: Array, numbers: Array, tile: Array, first: int, sums: Array) -> None:
    _simd_panel.add_panels(queries, active, numbers, tile, first, sums, None, None, 0)


if __name__ == "__main__":
    main()
