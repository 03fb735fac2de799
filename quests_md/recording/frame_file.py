"""A file of frames of a run, each known by the key of its evaluation."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from ..errors import OutputError
from ..files import HeldFolder
from ..files.extxyz import frame_parts
from ..monitor import Key
from .reader import iterate_frames
from .recorder import Whole
from .rows import say_cut

__all__ = ["FrameFile"]

# What the line of a saved frame says of its place in the run.
_KEY = re.compile(rb" run=(\d+) step=(-?\d+) (?:repeat=(\d+) )?")


class FrameFile:
    """A file of frames that grows, shrinks and is taken up again. Rank 0 only.

    Attributes
    ----------
    keys
        Of its frames, in order; a key may come several times (cut-outs of one frame).
    """

    def __init__(self, folder: HeldFolder, name: str) -> None:
        self._folder, self.name = folder, name
        self.keys: list[Key] = []
        self._sizes: list[int] = []

    def append(self, key: Key, whole: Whole, info: dict[str, Any]) -> None:
        """Add a frame; `OutputError` if it cannot be written."""
        size = self._folder.append(self.name, frame_parts(whole.frame, whole.dH, info, whole.columns))
        self.keys.append(key)
        self._sizes.append(size)

    def read(self) -> Iterator[Any]:
        """Yield the frames as ``ase.Atoms``; `OutputError` where ASE cannot read one."""
        return iterate_frames(self._folder.path / self.name)

    def scan(self) -> None:
        """Find the frames of a file that is there, and change nothing.

        Raises
        ------
        OutputError
            The file cannot be read, or is damaged elsewhere than at its end.
        """
        self.keys, self._sizes = [], []
        if not self._folder.exists(self.name):
            return
        path = self._folder.path / self.name
        try:
            with self._folder.open(self.name) as file:
                first = 0
                while (count := file.readline()).endswith(b"\n"):
                    comment = file.readline()
                    key = _KEY.search(comment)
                    if not count.strip().isdigit() or (comment.endswith(b"\n") and key is None):
                        raise OutputError(f"{path}: damaged at byte {first}: no frame of a run begins there")
                    last = comment
                    for _ in range(int(count)):
                        last = file.readline()
                        if not last:
                            break
                    if not last.endswith(b"\n") or key is None:
                        return
                    self.keys.append(Key(int(key[1]), int(key[2]), int(key[3] or 0)))
                    self._sizes.append(file.tell() - first)
                    first = file.tell()
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error

    def mend(self, keep: Collection[int] | None = None) -> None:
        """Cut off half a frame at the end, and keep only the frames at these places; all by default."""
        whole = sum(self._sizes)
        say_cut(self._folder.path / self.name, self._folder.cut(self.name, whole), "a frame")
        self._folder.adopt(self.name)
        if keep is not None:
            self.keep(keep)

    def keep(self, places: Collection[int]) -> None:
        """Take all other frames out of the file, atomically; `OutputError` if it cannot be written."""
        if len(places) == len(self.keys):
            return
        firsts = [0]
        for size in self._sizes:
            firsts.append(firsts[-1] + size)
        kept = sorted(places)
        self._folder.keep(self.name, [(firsts[place], self._sizes[place]) for place in kept])
        self.keys, self._sizes = [self.keys[place] for place in kept], [self._sizes[place] for place in kept]

    def remove(self, key: Key) -> None:
        """Take the frames of an evaluation out of the file."""
        self.keep([place for place, known in enumerate(self.keys) if known != key])
