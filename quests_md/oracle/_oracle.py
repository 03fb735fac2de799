"""What an oracle is told: the calculator, its keywords, and what its labels must be to be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic

from ..settings import Seconds, make_settings, read_toml
from ._call import check_path

__all__ = ["Oracle"]


def _import_path(value: str) -> str:
    return check_path(value, "calculator")


_Calculator = Annotated[str, pydantic.AfterValidator(_import_path)]
_Limit = Annotated[float, pydantic.Field(gt=0)]


class Oracle(pydantic.BaseModel):
    """An ASE calculator by its import path, and what its labels must be to be believed.

    Attributes
    ----------
    calculator
        "module:Class", or anything in a module that makes a calculator when it is called.
    keywords
        What it is called with. A table that has a key `call` is itself called, with its other keys: the profiles
        of ASE are made so. `{folder}` in a text becomes the scratch folder of the frame.
    environment
        Variables set for the process that calculates. Default: one thread.
    stress
        Ask for the stress where the frame is periodic in three directions and the calculator implements it.
    wall_time
        Seconds, or "hh:mm:ss", that a frame may take; then its calculation is killed.
    max_force
        Largest force on an atom (eV/Å) that is believed. A frame with a larger one, or with a label that is no finite
        number, is quarantined.
    energy_tolerance, force_tolerance
        How far labels may be from the stored ones when a frame is labelled again: eV/atom, and eV/Å in each component.
    scratch
        Folder in which each calculation gets a folder of its own, its working folder. Default: the system's for
        temporary files.
    keep
        Keep those of successful calculations, too. What a calculation that fails has written is always kept.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    calculator: _Calculator
    keywords: dict[str, pydantic.JsonValue] = {}  # dates, which TOML knows, are none
    environment: dict[str, str] = {"OMP_NUM_THREADS": "1"}
    stress: bool = True
    wall_time: Seconds = 3600.0
    max_force: _Limit = 50.0
    energy_tolerance: _Limit = 1e-3
    force_tolerance: _Limit = 0.01
    scratch: str | None = None
    keep: bool = False

    @classmethod
    def read(cls, path: str | Path) -> Oracle:
        """Read the TOML file of an oracle.

        Raises
        ------
        ConfigError
            No such file, no TOML, a key that does not exist, or a wrong value.
        """
        return make_settings(cls, read_toml(path), str(path))

    @property
    def settings(self) -> dict[str, Any]:
        """What labels depend on; labels of other settings are those of another oracle."""
        return {"calculator": self.calculator, "keywords": self.keywords}
