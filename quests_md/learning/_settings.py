"""The schema of learn.toml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ..config import Bandwidth, RunConfig
from ..errors import ConfigError
from ..information import DEFAULT_BANDWIDTH
from ..labelling import Oracle
from ..toml import check_keys, make_settings, read_toml
from ..training import make_trainer
from ._job import Explore

__all__ = ["ExploreTable", "IndexTable", "LearnConfig", "OracleTable", "StopTable"]

# What [monitor] may say: the keys of a watched run less those that the loop sets, or that belong to one host.
MONITOR = (
    "select", "halt", "min_atoms", "min_fraction", "consecutive", "release", "every", "save_every", "novelty", "budget",
    "cutout", "history", "after", "min_distance", "implausible", "values", "precision", "threads",
)  # fmt: skip

_Files = Annotated[tuple[str, ...], pydantic.Strict(False), pydantic.Field(min_length=1)]
_TABLES = ("index", "oracle", "trainer", "explore", "monitor", "stop")


class _Table(pydantic.BaseModel):
    # As RunConfig: strict, so that `generations = true` is a mistake and not 1.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class IndexTable(_Table):
    """How the index is built.

    Attributes
    ----------
    k, cutoff, species, bandwidth
        As of `quests-md index build`; the bandwidth is frozen across generations.
    group_key
        The key of the training frames' info that names where each came from: a calibration leaves out whole groups.
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
        Frames that are labelled at a time.
    scheduler
        Address of Dask's scheduler.
    tries
        How often a frame is calculated before it is given up. An oracle that is deterministic needs one.
    """

    executor: Literal["local", "mpi", "dask"] = "local"
    workers: pydantic.PositiveInt = 1
    scheduler: str | None = None
    tries: pydantic.PositiveInt = 3

    def oracle(self) -> Oracle:
        """Return the oracle alone."""
        return Oracle(**{name: getattr(self, name) for name in Oracle.model_fields})


class ExploreTable(Explore):
    """The explorations, and how many of them run at a time.

    Attributes
    ----------
    workers
        Explorations that run at a time.
    """

    workers: pydantic.PositiveInt = 1

    def explore(self) -> Explore:
        """Return what an exploration is told."""
        return Explore(**{name: getattr(self, name) for name in Explore.model_fields})


class StopTable(_Table):
    """When the loop ends.

    Attributes
    ----------
    force_error
        Root mean square error of the forces on the held-out frames that must be reached, in eV/Å for each component.
    covered
        Share of the environments of every exploration that must be covered.
    generations
        The most generations.
    labels
        The most labels; None is no limit.
    failed
        Share of the frames of a generation whose labelling may fail; above it the loop stops with an error.
    """

    force_error: pydantic.PositiveFloat
    covered: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.99
    generations: pydantic.PositiveInt = 10
    labels: pydantic.PositiveInt | None = None
    failed: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5


class LearnConfig(_Table):
    """What the loop is told. Paths are relative to the working folder.

    Attributes
    ----------
    training
        Files of labelled frames: what generation 0 is trained on, and what its index is built of.
    held_out
        Files of labelled frames that no potential is trained on.
    output
        Folder of the loop.
    seed
        What all seeds are derived from.
    budget
        The most frames, or cut-outs, that are labelled in a generation.
    index, oracle, trainer, explore, monitor, stop
        Tables.
    """

    training: _Files
    held_out: _Files
    output: str = "learning"
    seed: pydantic.NonNegativeInt = 0
    budget: pydantic.PositiveInt = 20
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
            No such file, no TOML, a key that does not exist (with the nearest right one), or a wrong value.
        """
        return cls.make(read_toml(path), where=str(path))

    @classmethod
    def make(cls, values: Mapping[str, Any], where: str = "the arguments") -> LearnConfig:
        """Check values and make a configuration; `ConfigError` names `where` they came from, and the table."""
        check_keys(values, cls.model_fields, where)
        made = dict(values)
        for name in ("training", "held_out"):
            if isinstance(made.get(name), str):
                made[name] = [made[name]]
        for name in _TABLES:
            given = made.get(name, {})
            if not isinstance(given, Mapping):
                raise ConfigError(f"{where}: {name} must be a table, [{name}], not {given!r}")
            made[name] = _table(name, dict(given), f"{where}: [{name}]")
        return make_settings(cls, made, where)


def _table(name: str, values: dict[str, Any], where: str) -> Any:
    """Return a checked table."""
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
    # The loop selects among all that is proposed: an exploration proposes all that it finds. A budget needs novelty.
    values = {"consecutive": 1, "novelty": "budget" in values, **values}
    made = RunConfig.make({**values, "index": "index-000.qindex"}, where)
    if made.budget is not None and not made.novelty:
        raise ConfigError(f"{where}: budget needs novelty = true: it keeps the frames that add most")
    return values
