"""The output folder of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import write_atomically
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

    def prepare(self, content: dict[str, Any], overwrite: bool) -> None:
        """Make the folder, and run.json in it with this content; delete the other files of an earlier run.

        Raises
        ------
        OutputError
            The folder holds an earlier run and `overwrite` is False, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            frames = (self.candidates, self.cutouts, self.history, self.implausible, self.last)
            files = [*(sink.path for sink in (self.rows, self.events, *frames)), self.live]
            old = [path for path in (*files, self._json) if path.exists()]
            if old and not overwrite:
                raise OutputError(
                    f"{self.path} holds an earlier run ({old[0].name}): choose another output, or set overwrite = true"
                )
            if not overwrite:
                self._claim()
            try:
                self.write_json(content)  # first, so that a folder that cannot be written keeps the earlier run
            except OutputError:
                if not overwrite:
                    self._json.unlink(missing_ok=True)  # a claim, and no run
                raise
            for path in files:
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{self.path}: cannot be used as output folder: {reason}") from error

    def _claim(self) -> None:
        """Make run.json, still empty: of several runs that begin here at the same instant only one can."""
        try:
            os.close(os.open(self._json, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            raise OutputError(
                f"{self.path} is the output of another run that has just begun: choose another output"
            ) from None

    def write_json(self, content: dict[str, Any]) -> None:
        """Replace run.json, atomically; `OutputError` if it cannot be written."""
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(self._json, lambda file: file.write(text.encode()))
