"""Own descriptors on the command line: files .npy in the place of frames."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..index import Index
from ..sources import describe_source, read_descriptors

__all__ = ["are_own", "build_own", "read_own", "refuse_options_for_frames"]


def are_own(sources: Sequence[str]) -> bool:
    """Return whether sources hold own descriptors; raise `InputError` where some do and others do not."""
    own = [Path(source).suffix == ".npy" for source in sources]
    if any(own) and not all(own):
        frames = sources[own.index(False)]
        raise InputError(
            f"{sources[own.index(True)]} holds own descriptors and {frames} frames: one index has one kind"
        )
    return all(own)


def build_own(
    sources: Sequence[str],
    bandwidth: float | str | None,
    name: str | None,
    for_frames: Mapping[str, Any],
    threads: int | None,
) -> Index:
    """Build an index of own descriptors; `for_frames` are options that mean nothing for them."""
    refuse_options_for_frames(sources[0], for_frames)
    if bandwidth is None or isinstance(bandwidth, str):
        raise InputError(
            f"{sources[0]} holds own descriptors, whose unit is not known here: give --bandwidth H in it; "
            f"quests-md bandwidth {sources[0]} helps to choose"
        )
    described = [describe_source(source) for source in sources]
    x, frame_offsets = read_own(sources)
    name = Path(sources[0]).name if name is None else name
    return Index.from_descriptors(
        x, bandwidth, frame_offsets=frame_offsets, name=name, sources=described, threads=threads
    )


def refuse_options_for_frames(source: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` if an option was given that means nothing for own descriptors."""
    given = [f"--{key}" for key, value in options.items() if value is not None]
    if given:
        raise InputError(f"{source} holds own descriptors: {', '.join(given)} is for frames")


def read_own(sources: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Read files of own descriptors, each a frame or several; return rows (n, d) and the first row of every frame."""
    parts = [read_descriptors(source) for source in sources]
    for source, (rows, _) in zip(sources, parts, strict=True):
        if rows.shape[1] != parts[0][0].shape[1]:
            raise InputError(
                f"{source} has {rows.shape[1]} columns and {sources[0]} has {parts[0][0].shape[1]}: other descriptors"
            )
    sizes = [[len(rows)] if offsets is None else np.diff(offsets).tolist() for rows, offsets in parts]
    x = parts[0][0] if len(parts) == 1 else np.concatenate([rows for rows, _ in parts])
    return x, np.cumsum([0, *itertools.chain(*sizes)], dtype=np.int64)
