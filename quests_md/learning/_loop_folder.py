"""The folder of a loop: where its files are, and what its JSON files hold."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pydantic

from ..config import RunConfig
from ..errors import ConfigError, OutputError
from ..machine import find_versions
from ..sources import describe_source
from ..training._records import TrainingRecord, read_record, write_record
from ..training._trainer import TRAINED
from ._settings import Explore, LearnConfig, SelectBy, StopTable

__all__ = [
    "COLUMNS", "DONE", "JOB", "Exploration", "Folder", "Generation", "Job", "Labelled", "Row", "Selected",
    "SelectedFrame", "State", "Thresholds", "read_file",
]  # fmt: skip

_Record = TypeVar("_Record")
Thresholds = dict[str, dict[str, float]]  # "select" and "halt", in nats for each element


def read_file(kind: type[_Record], path: Path) -> _Record:
    """Read a JSON file of a loop; `OutputError` names the file, and the key that is wrong."""
    return read_record(kind, path, "as the loop wrote it", error=OutputError)


@dataclass(frozen=True)
class Folder:
    """The output folder of a loop. The last file that a stage writes is named here; it is written atomically.

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
        """The index by which the explorations of a generation are judged."""
        return self.path / f"index-{generation:03d}.qindex"

    def generation(self, generation: int) -> Path:
        return self.path / f"generation-{generation:03d}"

    def training(self, generation: int) -> Path:
        """The folder of the potential."""
        return self.generation(generation) / "training"

    def trained(self, generation: int) -> Path:
        return self.training(generation) / TRAINED

    def selected(self, generation: int) -> Path:
        return self.generation(generation) / "selected.json"

    def labelled(self, generation: int) -> Path:
        return self.generation(generation) / "labelled.json"

    def record(self, generation: int) -> Path:
        return self.generation(generation) / "generation.json"


# -- job.json and exploration.json: an exploration ---------------------------------------------------------------------

DONE = "exploration.json"  # its presence says that the exploration has ended
JOB = "job.json"

# Keys of a watched run that an exploration sets itself, or that could end it for no good reason.
_OURS = {
    "index", "reference", "skip", "span", "species", "bandwidth", "output", "overwrite", "resume", "wall_time",
    "elements", "on_error", "length_unit", "restart_file", "group",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What one exploration is told: job.json in its folder.

    Attributes
    ----------
    name, folder
        Its name, and the folder of its files, for it alone.
    potential, index
        Folder of the potential that moves the atoms; file of the index that watches.
    start
        File of the start frame, with a selection ("md.xyz@3"); without one, its first frame.
    temperature, pressure
        K; GPa, or None for a cell that stays as it is.
    seed
        Seed of the velocities, and of other random numbers; 1 to 900,000,000.
    settings
        All other settings of the exploration.
    monitor
        Keys of `RunConfig`: select, halt, every, ...
    continues
        Take the velocities of the start frame, if it has some. Otherwise they are drawn at the temperature.
    bias
        The key `bias` of the watched run; None without a bias.

    Raises
    ------
    ConfigError
        The seed is out of range, or a key of `monitor` is wrong or set by the exploration.
    """

    name: str
    folder: Path
    potential: Path
    index: Path
    start: str
    temperature: float
    pressure: float | None
    seed: int
    settings: Explore
    monitor: dict[str, Any]
    continues: bool = False
    bias: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.seed <= 900_000_000:
            raise ConfigError(f"exploration {self.name}: a seed must lie between 1 and 900000000, not {self.seed}")
        taken = sorted(_OURS & set(self.monitor))
        if taken:
            raise ConfigError(f"exploration {self.name}: {', '.join(taken)} of [monitor] is set by the exploration")
        self.config(())

    def config(self, elements: tuple[str, ...]) -> RunConfig:
        """Return the configuration of the watched run."""
        of_host = {"elements": list(elements)} if elements and self.settings.host == "lammps" else {}
        ours = {"index": str(self.index), "output": str(self.folder), "overwrite": True, **of_host}
        if self.bias is not None:
            ours["bias"] = self.bias
        return RunConfig.make({**self.monitor, **ours}, where=f"exploration {self.name}: [monitor]")

    def absolute(self) -> Job:
        """Return the job with paths that do not depend on the working folder."""
        path, at, selection = self.start, "", ""
        if not Path(path).exists() and "@" in path:
            path, at, selection = path.rpartition("@")
        settings = self.settings
        if settings.setup is not None:
            settings = settings.model_copy(update={"setup": str(Path(settings.setup).absolute())})
        paths = {name: getattr(self, name).absolute() for name in ("folder", "potential", "index")}
        return replace(self, **paths, start=f"{Path(path).absolute()}{at}{selection}", settings=settings)

    def write(self) -> Path:
        """Write job.json, and return its path."""
        write_record(self.folder / JOB, self)
        return self.folder / JOB

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read job.json; `OutputError` if the file is something else."""
        return read_record(cls, path, "the file of an exploration", error=OutputError)


@dataclass(frozen=True)
class Exploration:
    """The result of an exploration: exploration.json in its folder.

    Attributes
    ----------
    name
        Name of its job.
    status
        "finished"; "halted" by the halt threshold; "implausible" if a broken frame ended it; "crashed" if the host or
        its process failed.
    reason
        Why it did not finish, in words; empty if it did.
    steps, time
        Number of steps that it ran, and ps; if it crashed, up to the last evaluation.
    first_halt
        ps at the first frame above the halt threshold, or None.
    covered_share
        Share of the environments of all evaluated frames whose dH is at or below `select`; 0 if none was evaluated.
    frames
        Number of evaluated frames.
    covered_to_end
        It finished without any event, candidate, halt or implausible frame.
    candidates, n_candidates
        File of the candidates, and their number; if there are none, there is no file.
    last_covered
        File of the last covered frame before the first candidate, with velocities; or None.
    log
        The end of the logs, if it crashed; else empty.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = {"extra": "forbid"}

    name: str
    status: Literal["finished", "halted", "implausible", "crashed"]
    reason: str
    steps: int
    time: float
    first_halt: float | None
    covered_share: float
    frames: int
    covered_to_end: bool
    candidates: Path
    n_candidates: int
    last_covered: Path | None
    log: str = ""

    def relative_to(self, folder: Path) -> Exploration:
        """Return the same with the paths of its files relative to a folder."""
        last = None if self.last_covered is None else self.last_covered.relative_to(folder)
        return replace(self, candidates=self.candidates.relative_to(folder), last_covered=last)

    def write(self, folder: Path) -> None:
        """Write exploration.json, last of all. Paths in it are relative to the folder."""
        write_record(folder / DONE, self.relative_to(folder))

    @classmethod
    def read(cls, folder: Path) -> Exploration:
        """Read the result of the exploration in a folder.

        Raises
        ------
        OutputError
            There is no exploration.json, or it is damaged.
        """
        what, advice = "the result of an exploration", ": remove the folder to run it again"
        found = read_record(cls, folder / DONE, what, advice, OutputError)
        last = None if found.last_covered is None else folder / found.last_covered
        return replace(found, candidates=folder / found.candidates, last_covered=last)


# -- selected.json, labelled.json and generation.json: a generation ----------------------------------------------------


class SelectedFrame(pydantic.BaseModel):
    """A selected frame: its id in the queue, where it comes from, and the largest dH (nats) of its environments.

    With `select_by` "error" or "both" also the largest error that is expected of them (eV/Å), None without any; and the
    number of those outside, of which none is.
    """

    id: int
    generation: int
    exploration: str
    step: int
    dH: float
    error: float | None = None
    outside: int | None = None


class Selected(pydantic.BaseModel):
    """selected.json: how many candidates there were, by what they were selected, and the frames that were.

    `measure` is "expected error", or "local residual" if these were not calibrated; None by dH.
    """

    candidates: int
    by: SelectBy = "dH"
    measure: str | None = None
    frames: list[SelectedFrame]


class Labelled(pydantic.BaseModel):
    """labelled.json: the ids of the frames of a generation, by the state that labelling brought them to."""

    done: list[int] = []
    failed: list[int] = []
    quarantined: list[int] = []


class Row(pydantic.BaseModel):
    """The row of a generation in learning.csv; its fields are the columns."""

    generation: int
    training_frames: int
    labels: int
    labels_new: int
    failed: int
    quarantined: int
    force_rmse: float | None
    energy_rmse: float | None
    covered_share: float
    first_halt_ps: float | None
    shortest_ps: float
    select: float
    halt: float
    select_at_10: float | None
    select_at_1: float | None
    index_size: int
    seconds_train: float | None
    seconds_explore: float | None
    seconds_select: float | None
    seconds_label: float | None
    seconds_extend: float | None


COLUMNS = tuple(Row.model_fields)


class Generation(pydantic.BaseModel):
    """generation.json: all of a generation that has ended. Paths are relative to the folder of the loop.

    Attributes
    ----------
    ended
        The status with which the loop ended in this generation; None if it went on.
    thresholds
        `select` and `halt`, in nats for each element.
    training
        The content of training.json.
    explorations, labels
        Results of the explorations; ids of the labelled frames.
    residuals
        What the residuals of the potential in the index are: name, fingerprint, origin, of how many rows they are
        (`labelled` of `rows`), and their mean in eV/Å; None if there are none, and in earlier files.
    files
        SHA-256 of each file of the generation. The index of the next one is in the record of that: it gets residuals.
    seconds
        Seconds that each stage took.
    row
        The row in learning.csv.
    """

    generation: int
    ended: str | None
    thresholds: Thresholds
    training: TrainingRecord
    explorations: list[Exploration]
    labels: Labelled
    residuals: dict[str, Any] | None = None
    files: dict[str, str]
    seconds: dict[str, float]
    row: Row


# -- learning.json: the state of a loop --------------------------------------------------------------------------------

# Settings that may change when a loop goes on: when it ends, and where and how fast things are computed.
_FREE = (
    "output", "stop", "oracle.executor", "oracle.workers", "oracle.scheduler", "oracle.wall_time", "oracle.tries",
    "explore.workers", "monitor.threads", "trainer.timeout", "training", "held_out", "explore.start", "explore.setup",
)  # fmt: skip


class State(pydantic.BaseModel):
    """learning.json: settings of a loop, how far it is, and what was fixed once for all generations.

    Attributes
    ----------
    started
        When the loop began.
    settings
        The settings that may not change, by dotted key, with hashes of the files.
    seconds
        Seconds that each stage took, by generation.
    status, reason
        "running", or how the loop ended, and why.
    generation, stage
        What it does now.
    stop
        The limits of the last start.
    versions
        Versions of the packages.
    watched, thresholds, bandwidth
        Number of watched atoms of each element; `select` and `halt`, in nats for each element; 1/Å. They are fixed when
        the first index is there; None before.
    """

    format: Literal[1] = 1
    started: str
    settings: dict[str, Any]
    seconds: dict[str, dict[str, float]] = {}
    status: str = "running"
    reason: str = ""
    generation: int = 0
    stage: str = "start"
    stop: StopTable
    versions: dict[str, str] = {}
    watched: dict[str, int] | None = None
    thresholds: Thresholds | None = None
    bandwidth: float | None = None

    _path: Path = pydantic.PrivateAttr()

    @classmethod
    def open(cls, folder: Path, config: LearnConfig) -> State:
        """Open the state of a folder, or begin one.

        Raises
        ------
        OutputError
            The folder holds files but no loop, or its learning.json is damaged or of another format.
        ConfigError
            A setting that may not change has changed.
        """
        path, settings = folder / "learning.json", _collect_settings(config)
        if path.exists():
            advice = ". Has another version of quests_md written it?"
            state = read_record(cls, path, "the state of a loop", advice, OutputError)
            if state.thresholds is not None:
                _check_same(folder, state.settings, settings)
                state._path, state.stop = path, config.stop
                return state
            # Nothing was fixed yet: the loop may have failed because a setting was wrong, so it begins again.
        else:
            others = sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".part"))
            if others:
                raise OutputError(f"{folder} holds {others[0]} but no learning.json: choose another output")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        state = cls(started=now, settings=settings, stop=config.stop)
        state._path = path
        state.save()
        return state

    @pydantic.model_serializer(mode="wrap")
    def _drop_what_is_not_fixed(self, serialize: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}

    def save(self, **changes: Any) -> None:
        """Change these values, and write learning.json."""
        for name, value in {**changes, "versions": find_versions()}.items():
            setattr(self, name, value)
        write_record(self._path, self)

    def add_seconds(self, generation: int, stage: str, seconds: float) -> None:
        """Add to the seconds of a stage of a generation."""
        stages = self.seconds.setdefault(str(generation), {})
        stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)


def _collect_settings(config: LearnConfig) -> dict[str, Any]:
    """Return the settings that may not change, by dotted key, and the hashes of the files."""
    every = dict(_flatten(config.model_dump(mode="json")))
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
    if config.select_by == "dH":
        del settings["select_by"]  # loops that were begun before it could be chosen go on
    as_read: dict[str, Any] = json.loads(json.dumps(settings))
    return as_read


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if settings differ from those that a loop began with."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        told = "; ".join(f"{key} was {_shorten(old.get(key))} and is {_shorten(new.get(key))}" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ConfigError(
            f"{folder} holds a loop with other settings: {told}{more}. A loop goes on with the settings it began with; "
            "only those of [stop], and where and how fast things run, may change. Set them back, or choose another "
            "output"
        )


def _shorten(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
