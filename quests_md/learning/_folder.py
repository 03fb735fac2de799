"""Where the files of a loop are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["TRAINED", "Folder"]

TRAINED = "training.json"  # the record of a training, in the folder of its potential; written last


@dataclass(frozen=True)
class Folder:
    """The output folder of a loop. Every stage ends by the file named here, which is written last and atomically.

    Attributes
    ----------
    path
        The folder.
    """

    path: Path

    @property
    def queue(self) -> Path:
        return self.path / "queue.db"

    @property
    def table(self) -> Path:
        return self.path / "learning.csv"

    def index(self, generation: int) -> Path:
        """The index that the explorations of a generation are judged by."""
        return self.path / f"index-{generation:03d}.qindex"

    def generation(self, generation: int) -> Path:
        return self.path / f"generation-{generation:03d}"

    def training(self, generation: int) -> Path:
        """The folder of the potential: it is moved here when training.json is in it."""
        return self.generation(generation) / "training"

    def trained(self, generation: int) -> Path:
        return self.training(generation) / TRAINED

    def selected(self, generation: int) -> Path:
        return self.generation(generation) / "selected.json"

    def labelled(self, generation: int) -> Path:
        return self.generation(generation) / "labelled.json"

    def record(self, generation: int) -> Path:
        return self.generation(generation) / "generation.json"

    def relative(self, path: Path) -> str:
        """Return a path as records hold it: relative to this folder."""
        return path.relative_to(self.path).as_posix()
