"""The settings of a loop: the keys of learn.toml."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ..bias import check_bias
from ..config import Bandwidth, RunConfig
from ..errors import ConfigError
from ..information import DEFAULT_BANDWIDTH
from ..labelling import Oracle
from ..toml import check_keys, make_settings, read_toml
from ..training import make_trainer

__all__ = ["Explore", "LearnConfig", "SelectBy", "StopTable"]

# The keys of [monitor]: those of a watched run, without those that the loop sets or that belong to one host.
MONITOR = (
    "select", "halt", "min_atoms", "min_fraction", "consecutive", "release", "every", "save_every", "novelty", "budget",
    "cutout", "history", "after", "min_distance", "implausible", "values", "precision", "threads",
)  # fmt: skip

SelectBy = Literal["dH", "error", "both"]

_Files = Annotated[tuple[str, ...], pydantic.Strict(False), pydantic.Field(min_length=1)]


def _to_list(value: Any) -> Any:
    """Return a list of one number for a number."""
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else value


_Numbers = Annotated[
    tuple[float, ...], pydantic.Strict(False), pydantic.Field(min_length=1), pydantic.BeforeValidator(_to_list)
]
_Strengths = Annotated[
    tuple[pydantic.NonNegativeFloat, ...],
    pydantic.Strict(False),
    pydantic.BeforeValidator(_to_list),
    pydantic.Field(min_length=1),
]
_Temperatures = Annotated[
    tuple[pydantic.PositiveFloat, ...],
    pydantic.Strict(False),
    pydantic.Field(min_length=1),
    pydantic.BeforeValidator(_to_list),
]

_TABLES = ("index", "oracle", "trainer", "explore", "monitor", "stop")


class _Table(pydantic.BaseModel):
    # Strict, as RunConfig: `generations = true` is a mistake, and not 1.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class IndexTable(_Table):
    """How the index is built.

    Attributes
    ----------
    k, cutoff, species, bandwidth
        As in `quests-md index build`. All generations have the same bandwidth.
    group_key
        Key in the info of the training frames that names the group of a frame. A calibration leaves out whole groups.
    """

    k: pydantic.PositiveInt = 32
    cutoff: pydantic.PositiveFloat = 5.0
    species: str | None = None
    bandwidth: Bandwidth = DEFAULT_BANDWIDTH
    group_key: str | None = None


class OracleTable(Oracle):
    """The oracle, and where it runs.

    Attributes
    ----------
    executor
        "local": processes of this machine; "mpi": ``mpi4py.futures``; "dask": the cluster of `scheduler`.
    workers
        How many frames are labelled at the same time.
    scheduler
        Address of Dask's scheduler.
    tries
        How often a frame is calculated before it is given up. A deterministic oracle needs one try.
    """

    executor: Literal["local", "mpi", "dask"] = "local"
    workers: pydantic.PositiveInt = 1
    scheduler: str | None = None
    tries: pydantic.PositiveInt = 3

    def oracle(self) -> Oracle:
        """Return the oracle, without where it runs."""
        return Oracle(**{name: getattr(self, name) for name in Oracle.model_fields})


class Explore(_Table):
    """How molecular dynamics explores.

    Attributes
    ----------
    host
        The program that moves the atoms: "lammps" or "ase".
    start
        File of frames. The explorations take them in turn.
    temperature
        K. Every temperature is explored.
    pressure
        GPa. Every pressure is explored at every temperature, in a cell that keeps its shape and changes its volume.
        None: the cell stays as it is.
    timestep
        fs.
    time
        ps. Length of an exploration, if nothing ends it earlier.
    damping
        fs. Time constant of the thermostat; that of the barostat is ten times as long.
    seeds
        Number of explorations at each temperature and pressure, each with velocities of its own.
    restart
        Where the explorations of the next generation begin: "covered", from the last covered frame of this one; or
        "start".
    setup
        File of LAMMPS commands, which is included after the potential.
    elements
        Chemical symbols of the types 1, 2, ... of LAMMPS, if `start` is a file of LAMMPS that does not tell them.
    strength
        Strengths of a bias that pushes explorations to where the index knows less, each a share of the mean force.
        Every strength is explored at every temperature and pressure; 0 is without a bias. None: no bias.
    bias
        Other settings of the bias: `ceiling`, `floor`, `focus` and the others of the key `bias` of quests.toml.
    """

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
    elements: Annotated[tuple[str, ...], pydantic.Strict(False)] | None = None
    strength: _Strengths | None = None
    bias: dict[str, Any] | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Explore:
        if self.bias is not None and not self.strength:
            raise ValueError("bias: give the strengths, too: strength = [0.0, 0.3]")
        for strength in self.strength or ():
            self.bias_of(strength)
        if self.setup is not None and self.host != "lammps":
            raise ValueError('setup holds commands of LAMMPS: leave it out with host = "ase"')
        if self.steps < 1:
            raise ValueError(f"time: {self.time:g} ps is less than one timestep of {self.timestep:g} fs")
        names = [name for name, _, _ in self.state_points()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"temperature and pressure: {twice} is there twice; seeds says how many explorations of each"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of steps of an exploration that nothing ends."""
        return round(1000.0 * self.time / self.timestep)

    def bias_of(self, strength: float) -> dict[str, Any] | None:
        """Return the key `bias` of the watched run at this strength; None at 0."""
        if not strength:
            return None
        settings = {**(self.bias or {}), "strength": strength}
        check_bias(settings)
        return settings

    def state_points(self) -> Iterator[tuple[str, float, float | None]]:
        """Yield name, temperature (K) and pressure (GPa) of every exploration of a generation."""
        points = itertools.product(self.temperature, self.pressure or (None,), range(1, self.seeds + 1))
        for temperature, pressure, seed in points:
            words = [f"{temperature:g}K", *([] if pressure is None else [f"{pressure:g}GPa"])]
            yield "-".join([*words, *([str(seed)] if self.seeds > 1 else [])]), temperature, pressure


class ExploreTable(Explore):
    """How molecular dynamics explores, and how many explorations run at the same time.

    Attributes
    ----------
    workers
        How many explorations run at the same time.
    """

    workers: pydantic.PositiveInt = 1

    def explore(self) -> Explore:
        """Return the settings of the explorations, without `workers`."""
        return Explore(**{name: getattr(self, name) for name in Explore.model_fields})


class StopTable(_Table):
    """When the loop ends.

    Attributes
    ----------
    force_error
        Largest root mean square error of a force component on the held-out frames, in eV/Å.
    covered
        Smallest share of covered environments in each exploration.
    generations
        Largest number of generations.
    labels
        Largest number of labels; None: no limit.
    failed
        Share of the frames of a generation whose labelling may fail. If more fail, the loop stops with an error.
    """

    force_error: pydantic.PositiveFloat
    covered: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.99
    generations: pydantic.PositiveInt = 10
    labels: pydantic.PositiveInt | None = None
    failed: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5


class LearnConfig(_Table):
    """The settings of a loop. Paths are relative to the working folder.

    Attributes
    ----------
    training
        Files of labelled frames. Generation 0 is trained on them, and its index is built of them.
    held_out
        Files of labelled frames on which the force error is measured. No potential is trained on them.
    output
        Folder of the loop.
    seed
        All other seeds are derived from it.
    budget
        Largest number of frames, or cut-outs, that are labelled in a generation.
    select_by
        Which of the candidates these are. "dH": those with most environments that are new. "error": those with the
        largest force error to be expected. "both": those with the largest sum of expected errors of environments that
        are new.
    index, oracle, trainer, explore, monitor, stop
        The tables.
    """

    training: _Files
    held_out: _Files
    output: str = "learning"
    seed: pydantic.NonNegativeInt = 0
    budget: pydantic.PositiveInt = 20
    select_by: SelectBy = "dH"
    index: IndexTable
    oracle: OracleTable
    trainer: dict[str, Any]
    explore: ExploreTable
    monitor: dict[str, Any]
    stop: StopTable

    @classmethod
    def read(cls, path: str | Path) -> LearnConfig:
        """Read a learn.toml.

        Raises
        ------
        ConfigError
            The file does not exist or is no TOML; or it has an unknown key (the message has the nearest one) or a
            wrong value.
        """
        return cls.make(read_toml(path), where=str(path))

    @classmethod
    def make(cls, values: Mapping[str, Any], where: str = "the arguments") -> LearnConfig:
        """Check values and make a configuration; a `ConfigError` names `where` they come from, and the table."""
        check_keys(values, cls.model_fields, where)
        made = dict(values)
        for name in ("training", "held_out"):
            if isinstance(made.get(name), str):
                made[name] = [made[name]]
        for name in _TABLES:
            given = made.get(name, {})
            if not isinstance(given, Mapping):
                raise ConfigError(f"{where}: {name} must be a table, [{name}], not {given!r}")
            made[name] = _check_table(name, dict(given), f"{where}: [{name}]")
        return make_settings(cls, made, where)


def _check_table(name: str, values: dict[str, Any], where: str) -> Any:
    """Check a table and return it."""
    models: dict[str, type[pydantic.BaseModel]] = {
        "index": IndexTable, "oracle": OracleTable, "explore": ExploreTable, "stop": StopTable,
    }  # fmt: skip
    if name in models:
        return make_settings(models[name], values, where)
    if name == "trainer":
        try:
            make_trainer(values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return values
    for key in values:
        if key in RunConfig.model_fields and key not in MONITOR:
            raise ConfigError(
                f"{where}: {key} is not for a loop, which sets it itself or has no use for it: leave it out"
            )
    check_keys(values, MONITOR, where)
    for key in ("select", "halt"):
        if isinstance(values.get(key), Mapping) and "force_error" in values[key]:
            raise ConfigError(
                f"{where}: {key}: the indexes of a loop have no bound of the force error: "
                "give a number of nats, nats by chemical symbol, or a false_alarm rate"
            )
    # By default an exploration proposes all that it finds: the loop selects later. But a budget needs novelty.
    values = {"consecutive": 1, "novelty": "budget" in values, **values}
    made = RunConfig.make({**values, "index": "index-000.qindex"}, where)
    if made.budget is not None and not made.novelty:
        raise ConfigError(f"{where}: budget needs novelty = true: it keeps the frames that add most")
    return values
