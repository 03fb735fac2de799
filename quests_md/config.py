"""The schema of quests.toml. Its keys are the keyword names of ``attach`` and ``Session``, one for one."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from .errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RunConfig"]


class RunConfig(pydantic.BaseModel):
    """What a watched run is told. Paths are relative to the working folder, as in a LAMMPS input script.

    Attributes
    ----------
    index
        Path of the index file.
    k, cutoff
        What the index must have been built with (`cutoff` in Å); an index of other values is refused.
        Default: any.
    select, halt
        dH (nats) above which a frame is saved, and above which the run stops. No default.
    every, save_every
        Steps between evaluations; least number of steps between saved candidates.
    output
        Folder for the files of the run.
    overwrite
        Replace the files of an earlier run in that folder; otherwise it is refused.
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
    """

    # Strict: `select = true` and `select = "5"` are mistakes, not 1.0 and 5.0.
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    index: str
    k: pydantic.PositiveInt | None = None
    cutoff: pydantic.PositiveFloat | None = None
    select: float
    halt: float
    every: pydantic.PositiveInt = 1
    save_every: pydantic.PositiveInt = 1
    output: str = "uq"
    overwrite: bool = False
    values: Literal["exact", "flagged"] = "exact"
    precision: Literal["single", "double"] = "single"
    threads: pydantic.PositiveInt = 1
    elements: Annotated[tuple[str, ...] | None, pydantic.Strict(False)] = None
    check_masses: bool = True
    group: str = "all"
    skin: pydantic.NonNegativeFloat | None = None
    length_unit: pydantic.PositiveFloat | None = None

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        """Read a quests.toml.

        Raises
        ------
        ConfigError
            No such file, no TOML, a key that does not exist (with the nearest right one), or a wrong value.
        """
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not valid TOML: {error}") from error
        return cls.make(values, where=str(path))

    @classmethod
    def make(cls, values: dict[str, Any], where: str = "the arguments") -> RunConfig:
        """Check values and make a configuration; `ConfigError` names `where` they came from."""
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(key, cls.model_fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(cls.model_fields)}"
                raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
        try:
            return cls(**values)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            key, text = ".".join(map(str, problem["loc"])), problem["msg"]
            given = "" if problem["type"] == "missing" else f", not {problem['input']!r}"
            raise ConfigError(f"{where}: {key}: {text[0].lower()}{text[1:]}{given}") from None
