"""The output folder of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import FolderLock, write_atomically
from ._csv import CsvSink
from ._extxyz import ExtxyzSink
from ._jsonl import JsonLinesSink

__all__ = ["COLUMNS", "RunFolder"]

COLUMNS = (
    "run", "step", "time", "n", "max", "max_id", "mean", "q50", "q99", "n_select", "n_halt",
    "band", "saved", "values", "seconds", "event", "novelty", "force_error",
)  # fmt: skip


class RunFolder:
    """The files of a run.

    They are monitor.csv, events.jsonl, run.json, and candidates, cutouts, history, implausible and last.extxyz; and
    live.qindex, the index of a live reference.

    Parameters
    ----------
    path
        The folder. Nothing is touched before `prepare`.

    Attributes
    ----------
    rows, events, candidates, cutouts, history, implausible, last
        The sinks; a file is made by the first thing that is written to it.
    live
        Path of live.qindex, for whoever writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = CsvSink(path / "monitor.csv", COLUMNS)
        self.events = JsonLinesSink(path / "events.jsonl")
        self.candidates = ExtxyzSink(path / "candidates.extxyz")
        self.cutouts = ExtxyzSink(path / "cutouts.extxyz")
        self.history = ExtxyzSink(path / "history.extxyz")
        self.implausible = ExtxyzSink(path / "implausible.extxyz")
        self.last = ExtxyzSink(path / "last.extxyz")
        self.live = path / "live.qindex"
        self._json = path / "run.json"
        self._lock: FolderLock | None = None

    def prepare(self, content: dict[str, Any], overwrite: bool) -> None:
        """Make the folder, and run.json in it with this content; delete the other files of an earlier run.

        Raises
        ------
        OutputError
            The folder holds an earlier run and `overwrite` is False, or it cannot be written.
        """
        try:
            self._claim()
            old = [path for path in (*self._files, self._json) if path.exists()]
            if old and not overwrite:
                raise OutputError(
                    f"{self.path} holds an earlier run ({old[0].name}): choose another output, "
                    "set resume = true to go on with it, or set overwrite = true"
                )
            self.write_json(content)  # first, so that a folder that cannot be written keeps the earlier run
            for path in self._files:
                path.unlink(missing_ok=True)
            self._tidy()
        except OSError as error:
            self.release()
            reason = error.strerror or error
            raise OutputError(f"{self.path}: cannot be used as output folder: {reason}") from error
        except OutputError:
            self.release()
            raise

    def find(self) -> dict[str, Any] | None:
        """Return run.json of the run that is to be resumed; None if the folder holds none, or is not there.

        Raises
        ------
        OutputError
            The folder is in use, holds other files of a run than run.json, or cannot be read.
        """
        if not self.path.is_dir():
            return None
        try:
            self._claim()
            content: Any = None
            if self._json.exists() and self._json.stat().st_size:
                content = json.loads(self._json.read_bytes())
            if isinstance(content, dict):
                return content
            old = [path for path in self._files if path.exists()]
            if not old and content is None:
                self._json.unlink(missing_ok=True)
                return None
            raise OutputError(f"{self.path}: run.json is missing or damaged: what is there cannot be resumed")
        except (OSError, ValueError) as error:
            self.release()
            raise OutputError(f"{self._json}: cannot be read: {error}") from error
        except OutputError:
            self.release()
            raise

    def mend(self) -> dict[str, list[tuple[int, int]]]:
        """Cut off what a program that was killed did not write in full, and say so; return the keys of all frames.

        Returns
        -------
        keys
            (run, step) of the frames of candidates, cutouts, history and implausible, by these names.
        """
        keys: dict[str, list[tuple[int, int]]] = {}
        cut = {"monitor.csv": self.rows.resume(), "events.jsonl": self.events.resume()}
        for name in ("candidates", "cutouts", "history", "implausible"):
            sink: ExtxyzSink = getattr(self, name)
            cut[sink.path.name], keys[name] = sink.resume()
        for file, size in cut.items():
            if size:
                what = "a frame" if file.endswith(".extxyz") else "a line"
                print(f"quests_md: {self.path / file}: {size} bytes of {what} that was not written in full are cut off")
        self._tidy()
        return keys

    def release(self) -> None:
        """Let another run use the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _claim(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FolderLock(self.path)

    def _tidy(self) -> None:
        """Remove what `write_atomically` leaves in a program that is killed."""
        for path in (*self._files, self._json):
            for part in self.path.glob(f"{path.name}*.part"):
                part.unlink()

    @property
    def _files(self) -> list[Path]:
        """All files but run.json."""
        frames = (self.candidates, self.cutouts, self.history, self.implausible, self.last)
        return [*(sink.path for sink in (self.rows, self.events, *frames)), self.live]

    def write_json(self, content: dict[str, Any]) -> None:
        """Replace run.json, atomically; `OutputError` if it cannot be written."""
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(self._json, lambda file: file.write(text.encode()))
