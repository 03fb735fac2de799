"""What `decision` asks about: a pool of environments of silicon from 300 to 3500 K, and streams of MD steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import DescriptorSpec, Index

from .peer import BANDWIDTH
from .silicon import cached, frames_of, sample
from .timing import seconds

__all__ = ["STREAM_TEMPERATURES", "Pool", "streams"]

POOL_TEMPERATURES = (300, 600, 900, 1200, 1500, 2000, 3000, 3500)  # K; the last two melt
POOL_CELLS, POOL_FRAMES, POOL_APART = 8, 31, 50  # 4096 atoms, 31 frames of each temperature 50 fs apart
STREAM_TEMPERATURES = (300, 1500, 3000)  # K
STREAM_CELLS, STREAM_STEPS = 5, 100  # 1000 atoms
_SEED = 2024


class Pool:
    """More than 10⁶ environments; references are drawn from them at random, the smaller sets inside the larger."""

    def __init__(self, folder: Path) -> None:
        settings = {"cells": POOL_CELLS, "n": POOL_FRAMES, "apart": POOL_APART}
        parts = [cached(folder, "pool", sample, temperature=t, seed=t, **settings) for t in POOL_TEMPERATURES]
        self.positions = np.concatenate(parts)
        shape = self.positions.shape[:2]
        self.rank = np.random.default_rng(_SEED).permutation(shape[0] * shape[1]).reshape(shape)

    def index(self, n: int) -> tuple[Index, float]:
        """Return the index of n environments, and the seconds that building took."""
        made: list[Index] = []
        frames = frames_of(self.positions, self.rank < n)
        taken = seconds(lambda: made.append(Index.build(frames, bandwidth=BANDWIDTH, threads=1)))
        return made[0], taken

    def rows(self, n: int) -> NDArray[np.float64]:
        """Return the descriptors of the same environments in double precision."""
        return DescriptorSpec().compute(frames_of(self.positions, self.rank < n), 1)


def streams(folder: Path) -> dict[int, Any]:
    """Return the descriptors (steps, atoms, d) of consecutive steps of 1 fs at each temperature."""
    made = {}
    for t in STREAM_TEMPERATURES:
        settings = {"cells": STREAM_CELLS, "n": STREAM_STEPS, "apart": 1, "seed": 7000 + t}
        positions = cached(folder, "stream", sample, temperature=t, **settings)
        made[t] = np.array([DescriptorSpec().compute(frame, 1) for frame in frames_of(positions)])
    return made
