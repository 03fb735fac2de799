"""The folder of a loop: where its files are, and learning.json."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError, OutputError
from ..files import write_atomically
from ..machine import find_versions
from ..sources import describe_source
from ._settings import LearnConfig

__all__ = ["TRAINED", "Folder", "Reporter", "Silent", "State", "read_json", "write_json"]

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


class Reporter(Protocol):
    """Who is told what a loop does."""

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """A stage begins; `total` is how many things (frames, explorations) it has to do, None if unknown."""

    def step(self, done: int, text: str = "") -> None:
        """So many things of the stage are done; `text` says what was, where there is something to say."""

    def row(self, row: dict[str, Any]) -> None:
        """A generation has ended: its row of learning.csv, which has just been written."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, generation: int, name: str, total: int | None) -> None:
        """Say nothing."""

    def step(self, done: int, text: str = "") -> None:
        """Say nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """Say nothing."""


_FORMAT = 1
# What may be another one when a loop goes on: when it ends, and how it is computed, but not what.
_FREE = (
    "output", "stop", "oracle.executor", "oracle.workers", "oracle.scheduler", "oracle.wall_time", "oracle.tries",
    "explore.workers", "monitor.threads", "trainer.timeout", "training", "held_out", "explore.start", "explore.setup",
)  # fmt: skip


def write_json(path: Path, data: Any) -> None:
    """Write data to a JSON file, atomically."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Return the data of a JSON file that `write_json` made; `OutputError` if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"{path}: not JSON ({error}): it is not as the loop wrote it") from error


class State:
    """learning.json of a folder.

    Attributes
    ----------
    path
        The file.
    data
        What it holds.
    """

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path, self.data = path, data

    @classmethod
    def open(cls, folder: Path, config: LearnConfig) -> State:
        """Open the state of a folder, or start one.

        Raises
        ------
        OutputError
            The folder holds files but no loop, or its learning.json is damaged or of a newer format.
        ConfigError
            A setting that decides is another one than at the start.
        """
        path, settings = folder / "learning.json", _settings(config)
        if path.exists():
            data = read_json(path)
            if not isinstance(data, dict) or data.get("format") != _FORMAT:
                raise OutputError(f"{path}: not a state of format {_FORMAT}: another version of quests_md wrote it")
        else:
            data = {}
            others = sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".part"))
            if others:
                raise OutputError(f"{folder} holds {others[0]} but no learning.json: choose another output")
        if "thresholds" not in data:  # nothing was settled: a setting may have been what was wrong
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            state = cls(path, {"format": _FORMAT, "started": now, "settings": settings, "seconds": {}})
            state.save(status="running", reason="", generation=0, stage="start", stop=config.stop.model_dump())
            return state
        _compare(folder, data["settings"], settings)
        data["stop"] = config.stop.model_dump()
        return cls(path, data)

    def save(self, **changes: Any) -> None:
        """Write the state with these values."""
        self.data |= changes | {"versions": find_versions()}
        write_json(self.path, self.data)

    def took(self, generation: int, stage: str, seconds: float) -> None:
        """Add to the seconds of a stage of a generation."""
        stages = self.data["seconds"].setdefault(str(generation), {})
        stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)


def _settings(config: LearnConfig) -> dict[str, Any]:
    """Return what decides, by dotted key: values, and the hashes of the files."""
    every = dict(_flat(config.model_dump(mode="json")))
    settings = {
        key: value for key, value in every.items() if not any(key == f or key.startswith(f + ".") for f in _FREE)
    }
    for key, files in (
        ("training", config.training),
        ("held_out", config.held_out),
        ("explore.start", [config.explore.start]),
    ):
        described = [describe_source(file) for file in files]
        settings[f"{key} (files)"] = [[source["sha256"], source["selection"]] for source in described]
    if config.explore.setup is not None:
        try:
            content = Path(config.explore.setup).read_bytes()
        except OSError as error:
            raise ConfigError(f"[explore]: setup: {config.explore.setup}: {error.strerror or error}") from error
        settings["explore.setup (file)"] = hashlib.sha256(content).hexdigest()
    as_read: dict[str, Any] = json.loads(json.dumps(settings))
    return as_read


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _compare(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        told = "; ".join(f"{key} was {_told(old.get(key))} and is {_told(new.get(key))}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{folder} holds a loop with other settings: {told}{more}. A loop goes on with the settings it began with; "
            "only those of [stop], and where and how fast things run, may change. Set them back, or choose another "
            "output"
        )


def _told(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
