"""How much of a held-out set lies outside of its own training set: the table of docs/method.md.

python -m benchmarks overlap Si_training.extxyz Si_test.extxyz
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from quests_md import DescriptorSpec, delta_entropy
from quests_md.sources import read_frames


def main() -> None:
    """Print the table for the two files that the command line names."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    training, test = sys.argv[1:]
    spec = DescriptorSpec()
    reference = spec.compute(read_frames(training))
    frames = [spec.compute(frame) for frame in read_frames(test)]
    print(f"{len(reference)} references, {sum(map(len, frames))} environments in {len(frames)} frames of the test set")
    print("bandwidth (1/Å)   environments with dH > 0   frames with an environment with dH > 0")
    for bandwidth in (0.015, 0.029):
        above = [delta_entropy(rows, reference, bandwidth) > 0 for rows in frames]
        environments, whole = np.concatenate(above).mean(), np.mean([mask.any() for mask in above])
        print(f"{bandwidth:15.3f}   {100 * environments:22.1f} %   {100 * whole:36.0f} %")
    print(f"references that make up 99 % of the kernel sum, h = 0.015: {_needed(np.concatenate(frames), reference)}")


def _needed(rows: Any, reference: Any, bandwidth: float = 0.015) -> str:
    """Return how many references the sum of an environment needs, as medians of covered ones and of others."""
    terms = np.exp(-0.5 * cdist(rows, reference, "sqeuclidean") / bandwidth**2)
    covered = terms.sum(axis=1) >= 1.0
    shares = np.cumsum(-np.sort(-terms, axis=1), axis=1) / terms.sum(axis=1, keepdims=True)
    counts = (shares < 0.99).sum(axis=1) + 1
    return ", ".join(
        f"{np.median(counts[which]):.0f} where dH {sign} 0" for which, sign in ((covered, "≤"), (~covered, ">"))
    )
