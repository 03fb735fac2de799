"""The keys of quests.toml, each described once: what it means, its type, its range, its default.

They are the keyword names of ``attach`` and ``Session``, one for one. From here come the file that ``quests-md config
init`` writes, the tables of docs/configuration.md (scripts/write-keys writes them), the options of ``quests-md watch``
and the keywords in docstrings.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic.fields import FieldInfo

from .bias import check_bias
from .errors import InputError
from .index import check_threshold
from .information import DEFAULT_BANDWIDTH, check_bandwidth
from .own_function import check_path
from .selection import check_cutout
from .toml import make_settings, parse_seconds, read_toml

__all__ = ["Bandwidth", "RunConfig", "describe_keys", "explain", "group_keys", "write_tables", "write_template"]

_Type = TypeVar("_Type", bound=type)


# -- types of keys -----------------------------------------------------------------------------------------------------


def _check_bandwidth(value: Any) -> Any:
    if value != "auto":
        check_bandwidth(value)
    return value


def _check_threshold(value: Any, info: pydantic.ValidationInfo) -> Any:
    check_threshold(str(info.field_name), value)
    return value


def _check_cutout(value: Any) -> Any:
    check_cutout(value)
    return value


def _check_resume(value: Any) -> Any:
    if not (isinstance(value, bool) or value == "anyway"):
        raise InputError(f'resume must be true, false or "anyway", not {value!r}')
    return value


def _check_function(value: str) -> str:
    check_path(value)
    return value


def _check_time(value: Any) -> Any:
    parse_seconds(value)
    return value


def _check_bias(value: Any) -> Any:
    check_bias(value)
    return value


Bandwidth = Annotated[Any, pydantic.AfterValidator(_check_bandwidth)]  # a number in 1/Å, or the word "auto"
_Threshold = Annotated[Any, pydantic.AfterValidator(_check_threshold)]
_Cutout = Annotated[dict[str, Any], pydantic.AfterValidator(_check_cutout)]
_Bias = Annotated[dict[str, Any], pydantic.AfterValidator(_check_bias)]
_Resume = Annotated[Any, pydantic.AfterValidator(_check_resume)]
_Time = Annotated[Any, pydantic.AfterValidator(_check_time)]  # it stays as it was given: seconds, or "hh:mm:ss"
_Function = Annotated[str, pydantic.AfterValidator(_check_function)]
_Command = Annotated[tuple[str, ...], pydantic.Strict(False), pydantic.Field(min_length=1)]
_Symbols = Annotated[tuple[str, ...], pydantic.Strict(False)]


# -- the keys ----------------------------------------------------------------------------------------------------------

# The first key of each group, and the heading of the group.
_GROUPS = {
    "reference": "Reference", "select": "Thresholds", "every": "Evaluation", "consecutive": "Events",
    "save_every": "Saving", "min_distance": "Broken frames", "bias": "Steering", "output": "Files",
    "on_error": "Stopping", "on_select": "Commands", "elements": "LAMMPS",
}  # fmt: skip


class RunConfig(pydantic.BaseModel):
    """What a watched run is told. Paths are relative to the working folder, as in a LAMMPS input script.

    {keys}
    """

    # Strict: `select = true` and `select = "5"` are mistakes, not 1.0 and 5.0. The text below a key is its description,
    # in Markdown: its links are those of docs/configuration.md. A key without a default has an example.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    reference: Literal["index", "live"] = "index"
    """What dH is measured against. `"index"`: the file that `index` names. `"live"`: the first frames of the run itself
    ([a live reference](live_reference.md)), those of `span` steps after `skip`."""
    index: str | None = pydantic.Field(None, examples=["reference.qindex"])
    """Path of the index file. Must be given, except with a live reference."""
    k: pydantic.PositiveInt | None = pydantic.Field(None, examples=[32])
    """Number of nearest neighbours in the descriptor. An index that was built with another number is refused; not set,
    any is taken. A live reference is built with it, by default with 32."""
    cutoff: pydantic.PositiveFloat | None = pydantic.Field(None, examples=[5.0])
    """Cutoff of the descriptor in Å, checked and used as `k` is. The default of a live reference is 5.0."""
    skip: pydantic.NonNegativeInt = 0
    """Live reference: number of steps, from the first frame on, that it does not learn from."""
    span: pydantic.PositiveInt | None = pydantic.Field(None, examples=[100_000])
    """Live reference: number of steps after these that it learns from. Must be given with it; take at least ten
    correlation times."""
    species: str | None = pydantic.Field(None, examples=["ignore"])
    """Live reference: how elements enter its descriptor, `"neighbours"`, `"full"`, `"centre"` or `"ignore"`. Must be
    given for two elements or more."""
    bandwidth: Bandwidth = DEFAULT_BANDWIDTH
    """Live reference: the bandwidth h in 1/Å, or `"auto"`, by the volume per atom."""
    describe: _Function | None = pydantic.Field(None, examples=["features:describe"])
    """An index of own descriptors: the [function that computes them](own_descriptors.md#watching) of a frame, as
    `"module:function"`. The module is imported from the working folder or from `PYTHONPATH`."""

    select: _Threshold = pydantic.Field(examples=[{"false_alarm": 0.01}])
    """dH above which a frame is saved: what the calibration of the index turns into nats, [a false-alarm rate or a
    force error](thresholds.md) (`{ false_alarm = 0.01 }`, `{ force_error = 0.3 }`); or a number of nats, or nats for
    each element (`{ Si = 5.0, C = 8.0 }`)."""
    halt: _Threshold = pydantic.Field(examples=[{"false_alarm": 0.01, "plus": 10.0}])
    """dH above which the run stops, given in the same ways. It must be at least `select`. With `plus` it lies that many
    nats above the threshold of a rate."""
    min_atoms: pydantic.PositiveInt = 1
    """Number of watched atoms that must lie above a threshold before the frame does."""
    min_fraction: float = pydantic.Field(0.0, ge=0, le=1)
    """Share of the watched atoms, from 0 to 1, that must lie above it, too."""

    every: pydantic.PositiveInt = 1
    """Evaluate frames whose step is a multiple of this."""
    values: Literal["exact", "flagged"] = "exact"
    """`"exact"`: every published dH is exact. `"flagged"`: dH is exact [where it
    decides](monitor.md#exact-values-and-flagged-ones) (above `select`, for the frame's maximum and in saved frames),
    and a certified upper bound elsewhere. The decisions are the same, and it is much faster."""
    precision: Literal["single", "double"] = "single"
    """Precision of exact dH where it decides nothing. `"single"` errs by less than max(1e-4, 1e-6·abs(dH)) nats,
    `"double"` by less than 1e-10."""
    threads: pydantic.PositiveInt = 1
    """Number of threads that each rank uses."""

    consecutive: pydantic.PositiveInt = 3
    """How many evaluated frames in a row above `select` [begin an event](monitor.md#events), and how many that are not
    above it end it. Only frames of an event are saved, and frames that halt the run."""
    release: float | None = pydantic.Field(None, examples=[3.0])
    """dH in nats to which the largest dH must fall before an event can end. Not set, it is `select`."""
    history: pydantic.NonNegativeInt = 0
    """Number of evaluated frames before an event that are [written to history.extxyz](monitor.md#the-way-into-an-event)
    when it begins."""
    after: pydantic.NonNegativeInt = 0
    """Number of evaluated frames after the beginning of an event that are written there."""

    save_every: pydantic.PositiveInt = 1
    """Least number of steps between saved candidates."""
    novelty: bool = True
    """Save a candidate only if it [adds information](selection.md) to the index and to what this run has kept."""
    budget: pydantic.PositiveInt | None = pydantic.Field(None, examples=[100])
    """Largest number of candidates; those that add most information are kept. Needs `novelty`. Not set, there is no
    limit."""
    cutout: _Cutout | None = pydantic.Field(None, examples=[{"radius": 4.0, "potential_range": 4.7}])
    """Cut small cells or clusters around the worst atoms of every candidate ([cut-outs](cutouts.md)). A table with
    `radius` (of the core, in Å) and, if wanted, `margin` or `potential_range`, `shape`, `vacuum`, `passivate` and
    `most`."""

    min_distance: float = pydantic.Field(0.5, ge=0, le=1)
    """Two atoms overlap if they are nearer to each other than this share of the smallest distance of their elements in
    the reference. Then the frame is [implausible](monitor.md#implausible-frames)."""
    implausible: Literal["stop", "continue"] = "stop"
    """What an implausible frame does to the run: `"stop"`, with an error, or `"continue"`."""

    bias: _Bias | None = pydantic.Field(None, examples=[{"strength": 0.1, "ceiling": 10.0}])
    """Add forces that push atoms towards a larger dH ([steering](steering.md)). A table with `strength` (a share of the
    mean force) or `tau` (eV per nat), and, if wanted, `floor`, `ceiling`, `focus`, `warm_up`, `largest_force` and
    `pause_in_events`. The run is then no equilibrium."""

    output: str = "uq"
    """Folder for the [files of the run](monitor.md#the-files-of-a-run). It is made if it does not exist."""
    overwrite: bool = False
    """Replace the files of an earlier run in that folder. Otherwise the folder is refused."""
    resume: _Resume = False
    """[Go on with the run](restart.md) in that folder, if there is one, with its counters, events, kept frames and
    budget. A different index, or a different setting that decides, is an error unless this is `"anyway"`."""

    on_error: Literal["stop", "warn"] = "stop"
    """What a failure of watching does to the run. `"stop"` ends it; `"warn"` lets it go on unwatched, and [dH is
    inf](restart.md#failure) from then on."""
    wall_time: _Time | None = pydantic.Field(None, examples=["23:30:00"])
    """Time in seconds, or as `"hh:mm:ss"`. The first evaluation after it tells the run
    [to stop](restart.md#sigterm-and-wall-time), as SIGTERM does."""

    on_select: _Command | None = pydantic.Field(None, examples=[["sh", "label.sh", "{output}", "{step}"]])
    """[Command](monitor.md#being-told) to start when a candidate has been saved: a list of arguments. It may have the
    fields `{output}`, `{run}`, `{step}`, `{event}` and `{max}`."""
    on_halt: _Command | None = pydantic.Field(None, examples=[["sh", "halted.sh"]])
    """Command to start when the run is told to stop."""
    on_event: _Command | None = pydantic.Field(None, examples=[["sh", "event.sh", "{event}"]])
    """Command to start when an event begins, and again when it ends."""
    commands_at_once: pydantic.PositiveInt = 16
    """How many of these commands may run at the same time. The others wait."""

    elements: _Symbols | None = pydantic.Field(None, examples=[["Si"]])
    """Chemical symbol of every atom type, in the order of the types. Must be given. `"NULL"` is for types that are no
    atoms (walls, virtual sites)."""
    check_masses: bool = True
    """Refuse elements that do not fit the masses of the types."""
    group: str = "all"
    """The group whose atoms are watched. All atoms count as neighbours, whatever their group."""
    skin: pydantic.NonNegativeFloat | None = pydantic.Field(None, examples=[2.0])
    """What `neighbor` was set to, in LAMMPS's length unit. Not set, it is LAMMPS's default for the units."""
    length_unit: pydantic.PositiveFloat | None = pydantic.Field(None, examples=[3.405])
    """The length unit of `units lj` in Å. Must be given with these units."""
    restart_file: str | None = pydantic.Field(None, examples=["halt.restart"])
    """LAMMPS driven from Python: the [restart file](restart.md#lammps) to write when the run has been told to stop."""

    @pydantic.model_validator(mode="after")
    def _check_reference(self) -> RunConfig:
        if self.describe is not None:
            for name in ("k", "cutoff"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of the built-in descriptor: with describe leave it out")
        if self.reference == "index":
            for name in ("skip", "span", "species", "bandwidth"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f'{name} is for reference = "live": an index file has its own')
            if self.index is None:
                raise ValueError('index: field required, or reference = "live"')
        elif self.describe is not None:
            raise ValueError('describe is for own descriptors in an index file: leave it out with reference = "live"')
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

    @classmethod
    def make(cls, values: dict[str, Any], where: str = "the arguments") -> RunConfig:
        """Check values and make a configuration; `ConfigError` names `where` they came from."""
        return make_settings(cls, values, where)

    def of_monitor(self) -> dict[str, Any]:
        """Return the keywords of `Monitor`."""
        return {name: getattr(self, name) for name in _MONITOR}

    def of_session(self) -> dict[str, Any]:
        """Return the keywords of `Session`."""
        return {name: getattr(self, name) for name in _SESSION}

    def of_live(self) -> dict[str, Any]:
        """Return the keywords of `Live`."""
        return {name: getattr(self, name) for name in _LIVE if getattr(self, name) is not None}


# Who takes which keys.
_LIVE = ("span", "skip", "k", "cutoff", "species", "bandwidth")
_MONITOR = (
    "select", "halt", "min_atoms", "min_fraction", "consecutive", "release", "every", "save_every", "min_distance",
    "implausible", "values", "precision", "threads",
)  # fmt: skip
_SESSION = (
    "output", "overwrite", "resume", "history", "after", "novelty", "budget", "cutout", "bias", "on_select", "on_halt",
    "on_event", "commands_at_once", "on_error", "wall_time",
)  # fmt: skip


# -- how keys are shown ------------------------------------------------------------------------------------------------

_HEAD = """\
# What a watched run is told (quests_md). Lines that begin with # show the defaults.
# Check it with: quests-md config check FILE"""


def group_keys() -> dict[str, dict[str, FieldInfo]]:
    """Return the keys of each group, by its heading."""
    groups: dict[str, dict[str, FieldInfo]] = {}
    for name, field in RunConfig.model_fields.items():
        if name in _GROUPS:
            fields = groups[_GROUPS[name]] = {}
        fields[name] = field
    return groups


def write_template() -> str:
    """Return a quests.toml with every key, explained: those that must be given, and the others as comments."""
    lines = [_HEAD]
    for heading, fields in group_keys().items():
        lines += ["", "", f"# -- {heading} ".ljust(100, "-")]
        for name, field in fields.items():
            lines += ["", *textwrap.wrap(explain(field), 100, initial_indent="# ", subsequent_indent="# ")]
            example = _toml((field.examples or [field.default])[0])
            if field.is_required() or name == "index":
                lines.append(f"{name} = {example}")
            else:
                hint = "  # an example: it is not set by default" if field.default is None else ""
                lines.append(f"# {name} = {example}{hint}")
    return "\n".join(lines) + "\n"


def write_tables() -> str:
    """Return the part of docs/configuration.md with all keys, a table for each group."""
    lines = []
    for heading, fields in group_keys().items():
        lines += [f"## {heading}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        for name, field in fields.items():
            default = "must be given" if field.is_required() else "not set"
            if not field.is_required() and field.default is not None:
                default = f"`{_toml(field.default)}`"
            lines.append(f"| `{name}` | {default} | {_in_one_line(field)} |")
        lines.append("")
    return "\n".join(lines)


def describe_keys(cls: _Type) -> _Type:
    """Replace ``{keys}`` in the docstring of a class by the meaning of all keys that its constructor takes."""
    taken = inspect.signature(cls).parameters
    texts = []
    for heading, fields in group_keys().items():
        entries = [_entry(name, field) for name, field in fields.items() if name in taken]
        if entries:
            texts += ["", f"**{heading}**", "", *entries] if cls is RunConfig else entries
    cls.__doc__ = inspect.cleandoc(cls.__doc__ or "").replace("{keys}", "\n".join(texts).strip())
    return cls


def _entry(name: str, field: FieldInfo) -> str:
    """Return what a key means, as an entry of a docstring."""
    text = re.sub(r"`([^`]+)`", r"``\1``", explain(field))
    return f"{name}\n{textwrap.fill(text, 116, initial_indent='    ', subsequent_indent='    ')}"


def explain(field: FieldInfo) -> str:
    """Return what a key means, in one line, without links and without the marks of values."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", _in_one_line(field))
    return re.sub(r'`(["{][^`]*)`', r"\1", text)


def _in_one_line(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _toml(value: Any) -> str:
    """Return a value of a key as TOML: its strings, lists and numbers are those of JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


describe_keys(RunConfig)
