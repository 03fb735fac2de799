"""The schema of quests.toml. Its keys are the keyword names of ``attach`` and ``Session``, one for one."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from .errors import InputError
from .index import check_threshold
from .information import DEFAULT_BANDWIDTH, check_bandwidth
from .selection import check_cutout
from .toml import make_settings, read_toml, parse_seconds

__all__ = ["RunConfig"]


def _time(value: Any) -> Any:
    parse_seconds(value)
    return value


def _threshold(value: Any, info: pydantic.ValidationInfo) -> Any:
    check_threshold(str(info.field_name), value)
    return value


def _bandwidth(value: Any) -> Any:
    if value != "auto":
        check_bandwidth(value)
    return value


def _cutout(value: Any) -> Any:
    check_cutout(value)
    return value


_Threshold = Annotated[Any, pydantic.AfterValidator(_threshold)]
_Cutout = Annotated[dict[str, Any], pydantic.AfterValidator(_cutout)]
_Command = Annotated[tuple[str, ...], pydantic.Strict(False), pydantic.Field(min_length=1)]


def _resume(value: Any) -> Any:
    if not (isinstance(value, bool) or value == "anyway"):
        raise InputError(f'resume must be true, false or "anyway", not {value!r}')
    return value


_Resume = Annotated[Any, pydantic.AfterValidator(_resume)]
_Time = Annotated[Any, pydantic.AfterValidator(_time)]


class RunConfig(pydantic.BaseModel):
    """What a watched run is told. Paths are relative to the working folder, as in a LAMMPS input script.

    Attributes
    ----------
    reference
        "index": what `index` names. "live": the run's own frames, of `span` steps after `skip`, and no `index`.
    index
        Path of the index file. No default, but with a live reference.
    k, cutoff
        What the index must have been built with (`cutoff` in Å); an index of other values is refused.
        Default: any. Of a live reference: what it is built with, 32 and 5.0 by default.
    skip, span
        Live reference: steps from the first frame on that are not learned from, and steps that are.
    species, bandwidth
        Live reference: how elements enter the descriptor, and h in 1/Å or "auto".
    select, halt
        dH above which a frame is saved, and above which the run stops: nats, nats for each element, or what the
        calibration of the index turns into nats ({ false_alarm = 0.01 }, { force_error = 0.3 }). No default.
    min_atoms, min_fraction
        So many atoms, and such a share of the watched ones, must lie above a threshold for the frame to.
    consecutive, release
        So many evaluated frames in a row begin and end an event; dH (nats) to which the largest must fall before it
        ends, default `select`.
    every, save_every
        Steps between evaluations; least number of steps between saved candidates.
    novelty, budget
        Save a candidate only if it adds information to the index and to what the run has kept; the most candidates
        to keep.
    cutout
        Cut-outs of the candidates, for frames too large for an oracle: a table with the radius of the core (Å) and, if
        wanted, margin or potential_range, shape, vacuum, passivate and most.
    history, after
        Evaluated frames before the beginning of an event, and after it, that are written to history.extxyz.
    min_distance, implausible
        Share of the smallest distances of the reference below which two atoms overlap; what a frame that is
        implausible does to the run: "stop", with an error, or "continue".
    output
        Folder for the files of the run.
    overwrite
        Replace the files of an earlier run in that folder; otherwise it is refused.
    resume
        Go on with the run in that folder, if there is one; "anyway": though the index, or a setting that decides, is
        another one.
    on_error
        "stop": a failure of watching ends the run. "warn": it goes on without being watched, and dH is inf.
    wall_time
        Seconds, or "hh:mm:ss", after which the run is told to stop at its next evaluation.
    on_select, on_halt, on_event
        Commands, as lists of arguments, that are started when a candidate has been saved, when the run is told to
        stop, and when an event begins or ends.
    commands_at_once
        How many of these commands may run at once; others wait for their turn.
    values
        "exact": every published dH is exact. "flagged", much faster: exact above `select`, for the frame's maximum and
        in saved frames, certified upper bounds elsewhere; the decisions are the same.
    precision
        Of exact values where they decide nothing: "single", or "double", which takes about twice the time.
    threads
        Threads per rank.
    elements
        LAMMPS: chemical symbol of every atom type, in order; "NULL" for sites that are no atoms.
    check_masses
        LAMMPS: refuse elements that do not fit the masses of the types.
    group
        LAMMPS: the group whose atoms are watched; neighbours are always all atoms.
    skin
        LAMMPS: what ``neighbor`` was set to, in LAMMPS's length unit; default that of the units.
    length_unit
        LAMMPS, ``units lj``: how many Å one length unit is.
    restart_file
        LAMMPS, driven from Python: the restart file that is written when the run has been told to stop.
    """

    # Strict: `select = true` and `select = "5"` are mistakes, not 1.0 and 5.0.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    reference: Literal["index", "live"] = "index"
    index: str | None = None
    k: pydantic.PositiveInt | None = None
    cutoff: pydantic.PositiveFloat | None = None
    skip: pydantic.NonNegativeInt = 0
    span: pydantic.PositiveInt | None = None
    species: str | None = None
    bandwidth: Annotated[Any, pydantic.AfterValidator(_bandwidth)] = DEFAULT_BANDWIDTH
    select: _Threshold
    halt: _Threshold
    min_atoms: pydantic.PositiveInt = 1
    min_fraction: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    consecutive: pydantic.PositiveInt = 3
    release: float | None = None
    every: pydantic.PositiveInt = 1
    save_every: pydantic.PositiveInt = 1
    novelty: bool = True
    budget: pydantic.PositiveInt | None = None
    cutout: _Cutout | None = None
    history: pydantic.NonNegativeInt = 0
    after: pydantic.NonNegativeInt = 0
    min_distance: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    implausible: Literal["stop", "continue"] = "stop"
    output: str = "uq"
    overwrite: bool = False
    resume: _Resume = False
    on_error: Literal["stop", "warn"] = "stop"
    wall_time: _Time | None = None
    on_select: _Command | None = None
    on_halt: _Command | None = None
    on_event: _Command | None = None
    commands_at_once: pydantic.PositiveInt = 16
    values: Literal["exact", "flagged"] = "exact"
    precision: Literal["single", "double"] = "single"
    threads: pydantic.PositiveInt = 1
    elements: Annotated[tuple[str, ...] | None, pydantic.Strict(False)] = None
    check_masses: bool = True
    group: str = "all"
    skin: pydantic.NonNegativeFloat | None = None
    length_unit: pydantic.PositiveFloat | None = None
    restart_file: str | None = None

    @pydantic.model_validator(mode="after")
    def _check_reference(self) -> RunConfig:
        if self.reference == "index":
            for name in ("skip", "span", "species", "bandwidth"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f'{name} is for reference = "live": an index file has its own')
            if self.index is None:
                raise ValueError('index: field required, or reference = "live"')
        elif self.index is not None:
            raise ValueError('reference = "live" makes an index of its own: leave out index')
        elif self.span is None:
            raise ValueError('reference = "live" needs span, the steps to learn from')
        return self

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        """Read a quests.toml.

        Raises
        ------
        ConfigError
            No such file, no TOML, a key that does not exist (with the nearest right one), or a wrong value.
        """
        return cls.make(read_toml(path), where=str(path))

    def of_monitor(self) -> dict[str, Any]:
        """Return the keywords of `Monitor`."""
        return {name: getattr(self, name) for name in _MONITOR}

    def of_session(self) -> dict[str, Any]:
        """Return the keywords of `Session`."""
        return {name: getattr(self, name) for name in _SESSION}

    def of_live(self) -> dict[str, Any]:
        """Return the keywords of `Live`."""
        return {name: getattr(self, name) for name in _LIVE if getattr(self, name) is not None}

    @classmethod
    def template(cls) -> str:
        """Return a quests.toml with every key, explained: those that must be given, and the others as comments."""
        lines = [_HEAD]
        for names, text in _explained(cls):
            lines += ["", *textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")]
            for name in names:
                field = cls.model_fields[name]
                if field.is_required() or name == "index":
                    lines.append(f"{name} = {_toml(_EXAMPLES[name])}")
                elif field.default is None:
                    lines.append(f"# {name} = {_toml(_EXAMPLES[name])}  # an example: it is not set by default")
                else:
                    lines.append(f"# {name} = {_toml(field.default)}")
        return "\n".join(lines) + "\n"

    @classmethod
    def make(cls, values: dict[str, Any], where: str = "the arguments") -> RunConfig:
        """Check values and make a configuration; `ConfigError` names `where` they came from."""
        return make_settings(cls, values, where)


_LIVE = ("span", "skip", "k", "cutoff", "species", "bandwidth")
_MONITOR = (
    "select", "halt", "min_atoms", "min_fraction", "consecutive", "release", "every", "save_every", "min_distance",
    "implausible", "values", "precision", "threads",
)  # fmt: skip
_SESSION = (
    "output", "overwrite", "resume", "history", "after", "novelty", "budget", "cutout", "on_select", "on_halt",
    "on_event", "commands_at_once", "on_error", "wall_time",
)  # fmt: skip


_HEAD = """\
# What a watched run is told (quests_md). Lines that begin with # show the defaults.
# Check it with: quests-md config check FILE"""
# What the template shows of keys that have no default; `index` has none either, but with a live reference.
_EXAMPLES: dict[str, Any] = {
    "index": "reference.qindex", "k": 32, "cutoff": 5.0,
    "wall_time": "23:30:00", "restart_file": "halt.restart", "span": 100_000, "species": "ignore",
    "select": 5.0, "halt": 20.0, "release": 3.0, "budget": 100,
    "cutout": {"radius": 4.0, "potential_range": 4.7},
    "on_select": ["sh", "label.sh", "{output}", "{step}"], "on_halt": ["sh", "halted.sh"],
    "on_event": ["sh", "event.sh", "{event}"], "elements": ["Si"], "skin": 2.0, "length_unit": 3.405,
}  # fmt: skip


def _explained(config: type[RunConfig]) -> Iterator[tuple[list[str], str]]:
    """Yield keys and what the docstring says of them."""
    section = inspect.cleandoc(config.__doc__ or "").split("Attributes\n----------\n")[1]
    for names, text in re.findall(r"^(\w.*)\n((?:    .*\n?)+)", section, re.M):
        yield names.split(", "), " ".join(text.split())


def _toml(value: Any) -> str:
    """Return a value of a key as TOML: its strings, lists and numbers are those of JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
