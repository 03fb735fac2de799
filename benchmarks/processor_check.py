"""What one process checks, with kernels for the processor that the environment names. `processors` starts it."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from quests_md.information import log_kernel_sum, pack
from quests_md.kernels import _simd, _simd_sum, kernel_sum, search
from quests_md.kernels.blocks import TILE, Blocks
from quests_md.kernels.kernel_sum import BLOCK, ROWS

Array = NDArray[Any]

H = 0.015
D = 63  # columns
PROMISED = {"single": (1e-4, 1e-6), "double": (1e-10, 1e-10)}  # absolute and relative, in nats
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
        blocks = pack(reference, H, precision, sort=False, threads=1)
        values = -log_kernel_sum(query, reference, H, blocks=blocks, precision=precision, threads=1)
        absolute, relative = PROMISED[precision]
        result[precision] = {
            "error": float(np.max(np.abs(values - exact) / np.maximum(absolute, relative * np.abs(exact)))),
            "rounding": _round(blocks),
            **_skip(query, blocks, exponents - top),
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
        search.upper_bounds(query, tree, ask, memory, 0, len(query), out)
        decided = ~np.isnan(out)
        wrong = ((out > threshold) != (exact > threshold)) | (out < exact - 1e-9 * np.maximum(1.0, np.abs(exact)))
        counts["decisions"] += int(decided.sum())
        counts["open"] += int((~decided).sum())
        counts["wrong"] += int((wrong & decided).sum())
    return counts


def _skip(query: Array, blocks: Blocks, exponents: Array) -> dict[str, int]:
    """Count blocks that were left out of sums, and queries from whose sum this took more than it may."""
    d, n = blocks.centres.shape
    dtype = blocks.tiles.dtype
    terms = np.exp(exponents)
    of_blocks = np.add.reduceat(terms, TILE * np.arange(n), axis=1)
    room = kernel_sum.Room(
        np.empty(ROWS * (d + 1), dtype),
        np.empty((ROWS, TILE), dtype),
        np.empty(ROWS),
        np.empty(ROWS),
        np.zeros((kernel_sum._CHUNK, kernel_sum._padded(d))),
        np.empty(n),
    )
    counts = {"blocks": 0, "left out": 0, "products": 0, "too much": 0}
    for first in range(0, len(query), BLOCK):
        queries = kernel_sum.Queries(
            np.zeros((BLOCK, kernel_sum._padded(d))),
            np.zeros((BLOCK // ROWS, ROWS * (d + 1)), dtype),
            np.empty((BLOCK, n)),
            np.empty((BLOCK, n)),
            np.zeros((BLOCK, n), np.int8),
            np.empty((BLOCK, 2)),
        )
        queries.centred[:, :d] = query[first : first + BLOCK]
        kernel_sum._prepare(BLOCK, queries, blocks, -np.inf, room)
        part, skipped = of_blocks[first : first + BLOCK], queries.way == kernel_sum._SKIP
        lost = (part * skipped).sum(axis=1) / part.sum(axis=1)
        counts["blocks"] += skipped.size
        counts["left out"] += int(skipped.sum())
        counts["products"] += int((queries.way == kernel_sum._PRODUCT).sum())
        counts["too much"] += int((lost > blocks.negligible).sum())
    return counts


def _round(blocks: Blocks) -> float:
    """Return the largest rounding of a product over what is allowed for, of rows that were made to round much.

    Half of them have equal entries, and all partial sums grow. In the others the first term of every chunk is large and
    all others are about half of its last digit. Both have many roundings that go the same way.
    """
    dtype, rng, largest = blocks.tiles.dtype, np.random.default_rng(3), 0.0
    out, unit = np.empty((ROWS, TILE), dtype), 0.5 * float(np.finfo(dtype).eps)
    width = blocks.tiles.shape[3]
    multiply = _multiply if blocks.vector else _simd_sum.products_plain
    times = _simd_sum.roundings(D + 1, blocks.vector)
    for trial in range(100):
        rows = np.repeat(rng.uniform(1.0, 2.0, (1, ROWS)), D + 1, axis=0)
        columns = np.repeat(rng.uniform(1.0, 2.0, (1, TILE)), D + 1, axis=0)
        if trial % 2:
            small = np.arange(D + 1) % (16 if blocks.vector else 4) > 0
            columns[small] *= unit * rng.uniform(0.3, 1.0, (int(small.sum()), TILE))
        rows, columns = rows.astype(dtype), columns.astype(dtype)
        tile = np.ascontiguousarray(columns.reshape(D + 1, -1, width).swapaxes(0, 1))
        multiply(rows.ravel(), tile, out)
        terms = [np.outer(rows[c].astype(np.longdouble), columns[c].astype(np.longdouble)) for c in range(D + 1)]
        allowed = sum(times[c] * np.abs(terms[c]) for c in range(D + 1))
        largest = max(largest, float(np.max(np.abs(out - sum(terms)) / (unit * allowed))))
    return largest


@_simd_sum.kernel
def _multiply(rows: Array, tile: Array, out: Array) -> None:
    _simd_sum.products(rows, tile, out)


if __name__ == "__main__":
    main()
