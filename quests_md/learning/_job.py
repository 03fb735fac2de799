"""What explorations are told, and what one came to."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from ..config import RunConfig
from ..errors import ConfigError, OutputError
from ..files import write_atomically
from ..monitor import Band
from ..recording import LAST_COVERED
from ..recording.reader import count_frames, read_rows

__all__ = ["CANNOT_RUN", "DONE", "JOB", "LOG", "Exploration", "Explore", "Job", "last_lines", "told"]

DONE = "exploration.json"  # its presence says that the exploration has come to its end
JOB = "job.json"
CANNOT_RUN = 78  # the exit code (sysexits' EX_CONFIG, which no library ends a program with) of one that made no result


def _listed(value: Any) -> Any:
    """Take a number for a list of one."""
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value


_Numbers = Annotated[
    tuple[float, ...], pydantic.Strict(False), pydantic.Field(min_length=1), pydantic.BeforeValidator(_listed)
]
_Temperatures = Annotated[
    tuple[pydantic.PositiveFloat, ...],
    pydantic.Strict(False),
    pydantic.Field(min_length=1),
    pydantic.BeforeValidator(_listed),
]

# Keys of a watched run that an exploration sets itself, or that would end it for no reason of its own.
_OURS = {
    "index", "reference", "skip", "span", "species", "bandwidth", "output", "overwrite", "resume", "wall_time",
    "elements", "on_error", "length_unit", "restart_file", "group",
}  # fmt: skip


class Explore(pydantic.BaseModel):
    """How molecular dynamics explores.

    Attributes
    ----------
    host
        The program that moves the atoms: "lammps" or "ase".
    start
        File of one or more frames; each exploration takes one of them in turn.
    temperature
        K; every temperature is explored.
    pressure
        GPa; where it is given, every pressure is explored at every temperature, with a cell that keeps its shape and
        changes its volume.
    timestep
        fs.
    time
        ps; the length of an exploration that nothing ends.
    damping
        fs; the time constant of the thermostat. That of the barostat is ten times as long.
    seeds
        Explorations of each temperature and pressure, with velocities of their own.
    restart
        Where the explorations of the next generation begin: "covered", the last covered frame of this one; or "start".
    setup
        LAMMPS: file of commands that is included after the potential.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    host: Literal["lammps", "ase"] = "lammps"
    start: str
    temperature: _Temperatures
    pressure: _Numbers | None = None
    timestep: pydantic.PositiveFloat = 1.0
    time: pydantic.PositiveFloat
    damping: pydantic.PositiveFloat = 100.0
    seeds: pydantic.PositiveInt = 1
    restart: Literal["covered", "start"] = "covered"
    setup: str | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Explore:
        if self.setup is not None and self.host != "lammps":
            raise ValueError('setup holds commands of LAMMPS: leave it out with host = "ase"')
        if self.steps < 1:
            raise ValueError(f"time: {self.time:g} ps is less than one timestep of {self.timestep:g} fs")
        names = [name for name, _, _ in self.state_points()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"temperature and pressure: {twice} is there twice; seeds tells how many of each")
        return self

    @property
    def steps(self) -> int:
        """Steps of an exploration that nothing ends."""
        return round(1000.0 * self.time / self.timestep)

    def state_points(self) -> Iterator[tuple[str, float, float | None]]:
        """Yield name, temperature (K) and pressure (GPa) of every exploration of a generation."""
        points = itertools.product(self.temperature, self.pressure or (None,), range(1, self.seeds + 1))
        for temperature, pressure, seed in points:
            words = [f"{temperature:g}K", *([] if pressure is None else [f"{pressure:g}GPa"])]
            yield "-".join([*words, *([str(seed)] if self.seeds > 1 else [])]), temperature, pressure


@dataclass(frozen=True)
class Job:
    """One exploration, as job.json in its folder says it.

    Attributes
    ----------
    name, folder
        What it is called, and the folder of its files, which is its own.
    potential, index
        Folder of the potential that moves the atoms; the index that watches.
    start
        File of the start frame, with a selection: "md.xyz@3", or the first frame.
    temperature, pressure
        K; GPa, or None for a cell that stays.
    seed
        Of the velocities and of what else is random; 1 to 900,000,000.
    settings
        The rest of what is explored.
    monitor
        Keys of `RunConfig`: select, halt, every, ...
    continues
        The start frame's velocities are taken, if it has some; else they are drawn at the temperature.
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

    def __post_init__(self) -> None:
        """Raise `ConfigError` for what cannot be run, before a process is started for it."""
        if not 1 <= self.seed <= 900_000_000:
            raise ConfigError(f"exploration {self.name}: a seed must lie between 1 and 900000000, not {self.seed}")
        taken = sorted(_OURS & set(self.monitor))
        if taken:
            raise ConfigError(f"exploration {self.name}: {', '.join(taken)} of [monitor] is set by the exploration")
        self.config(())

    def config(self, elements: tuple[str, ...]) -> RunConfig:
        """Return what the watched run is told."""
        of_host = {"elements": list(elements)} if elements and self.settings.host == "lammps" else {}
        ours = {"index": str(self.index), "output": str(self.folder), "overwrite": True, **of_host}
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
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        values["settings"] = self.settings.model_dump(mode="json")
        return _write(self.folder / JOB, values)

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read job.json; `OutputError` if it is none."""
        values = _read(path)
        try:
            paths = {name: Path(values[name]) for name in ("folder", "potential", "index")}
            return cls(**{**values, **paths, "settings": Explore(**values["settings"])})
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(f"{path}: not the file of an exploration: {error}") from error


@dataclass(frozen=True)
class Exploration:
    """What an exploration came to.

    Attributes
    ----------
    name
        Of its job.
    status
        "finished"; "halted" by the halt threshold; "implausible" where a broken frame ended it; "crashed" where the
        host, or its process, did.
    reason
        Why it did not finish, in words; else empty.
    steps, time
        Steps that it ran, and ps; of a crashed one those of the last evaluation.
    first_halt
        ps at the first frame above the halt threshold, or None.
    covered_share
        Share of the environments of all evaluated frames that lie at or below `select`; 0 where none was evaluated.
    frames
        Frames that were evaluated.
    covered_to_end
        Finished, without event, candidate, halt or implausible frame.
    candidates, n_candidates
        File of the candidates, and how many it holds; without any there is no file.
    last_covered
        File of the last covered frame before the first candidate, with velocities; None where there was none.
    log
        The end of what a crashed one has said; else empty.
    """

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

    def write(self, folder: Path) -> None:
        """Write exploration.json, atomically and last of all. Paths in it are relative to the folder."""
        values = asdict(self)
        values["candidates"] = self.candidates.name
        values["last_covered"] = None if self.last_covered is None else self.last_covered.name
        _write(folder / DONE, values)

    @classmethod
    def read(cls, folder: Path) -> Exploration:
        """Read what an exploration in this folder came to.

        Raises
        ------
        OutputError
            There is no exploration.json, or it is damaged.
        """
        values = _read(folder / DONE)
        if set(values) != {field.name for field in fields(cls)}:
            raise OutputError(f"{folder / DONE}: not the result of an exploration: remove the folder to run it again")
        values["candidates"] = folder / values["candidates"]
        values["last_covered"] = None if values["last_covered"] is None else folder / values["last_covered"]
        return cls(**values)


def _write(path: Path, values: dict[str, Any]) -> Path:
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise OutputError(f"{path}: cannot be read: it holds no table")
    return values


LOG = "explorer.log"  # what the process says
_LAMMPS_LOG = "log.lammps"
_CANDIDATES = "candidates.extxyz"
_TAIL = 20  # lines of each


def told(job: Job, status: Any, reason: str, steps: int | None = None) -> Exploration:
    """Return what an exploration came to, from its files: those of a process that was killed, too.

    Raises
    ------
    OutputError
        A file is damaged elsewhere than at its end.
    """
    path, candidates, last_covered = (job.folder / name for name in ("monitor.csv", _CANDIDATES, LAST_COVERED))
    rows, damaged = read_rows(path)
    if damaged:
        raise OutputError(f"{path}: line {damaged[0]} is damaged")
    is_broken, is_halt = rows["band"] == str(Band.IMPLAUSIBLE), rows["band"] == str(Band.HALT)
    n, above = (int(rows[name][~is_broken].sum()) for name in ("n", "n_select"))
    n_candidates = count_frames(candidates)
    if steps is None:
        steps = int(rows["step"][-1]) if len(rows) else 0
    is_covered = not n_candidates and not np.any((rows["event"] != 0) | is_broken | is_halt)
    return Exploration(
        name=job.name,
        status=status,
        reason=reason,
        steps=steps,
        time=steps * job.settings.timestep / 1000.0,
        first_halt=float(rows["time"][is_halt][0]) if is_halt.any() else None,
        covered_share=(n - above) / n if n else 0.0,
        frames=len(rows),
        covered_to_end=status == "finished" and is_covered,
        candidates=candidates,
        n_candidates=n_candidates,
        last_covered=last_covered if last_covered.exists() else None,
        log=tail(job) if status == "crashed" else "",
    )


def tail(job: Job) -> str:
    """Return the last lines of the logs of an exploration."""
    return "\n".join(line for name in (_LAMMPS_LOG, LOG) for line in last_lines(job.folder / name))


def last_lines(path: Path) -> list[str]:
    """Return the last lines of a log that are not empty; none where it cannot be read."""
    with contextlib.suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-_TAIL:]
    return []
