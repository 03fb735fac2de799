"""What an oracle is told, and what it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import InputError
from ..toml import Seconds, make_settings, read_toml
from ._mesh import MESH_KEYS

__all__ = ["FOLDER", "Labels", "Oracle", "call_tables", "check_call", "fill_folder", "load"]

# -- import paths, and tables that are calls ---------------------------------------------------------------------------

FOLDER = "{folder}"
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def _check_path(value: str, name: str) -> str:
    """Return an import path, "module:name"; `ValueError` if it is none."""
    if not _PATH.fullmatch(value):
        raise ValueError(f'{name} must be an import path such as "ase.calculators.emt:EMT", not {value!r}')
    return value


def check_call(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a table whose `call` is an import path, or None; `ValueError` if it is not one."""
    if table is not None:
        _check_path(str(table.get("call", "")), "call")
    return table


def load(path: str) -> Any:
    """Import what an import path names, and return it."""
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def fill_folder(value: Any, folder: str) -> Any:
    """Return settings with the folder in place of `{folder}`."""
    if isinstance(value, str):
        return value.replace(FOLDER, folder)
    if isinstance(value, Mapping):
        return {key: fill_folder(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill_folder(item, folder) for item in value]
    return value


def call_tables(value: Any) -> Any:
    """Return settings in which each table with a key `call` is replaced by the result of that call.

    The other keys of the table are the keywords of the call. Inner tables are called first.
    """
    if isinstance(value, list):
        return [call_tables(item) for item in value]
    if isinstance(value, dict):
        made = {key: call_tables(item) for key, item in value.items()}
        return load(str(made.pop("call")))(**made) if "call" in made else made
    return value


# -- the oracle and its labels -----------------------------------------------------------------------------------------

_Calculator = Annotated[str, pydantic.AfterValidator(lambda value: _check_path(value, "calculator"))]
_Limit = Annotated[float, pydantic.Field(gt=0)]


class Oracle(pydantic.BaseModel):
    """An ASE calculator, given by its import path, and the limits within which its labels are believed.

    Attributes
    ----------
    calculator
        "module:Class", or any other callable in a module that returns a calculator.
    keywords
        Keywords of that call. A table with a key `call` is itself a call, with its other keys as keywords: ASE's
        profiles are given this way. ``{folder}`` in a text stands for the scratch folder of the frame.
    kspacing
        Largest distance between k-points, in 1/Å with 2π, as VASP counts it. Each frame gets the mesh that follows from
        its cell, centred at Γ, with one point along axes that are not periodic. None: the mesh is up to the keywords.
    energy
        "free": the free energy, whose derivatives the forces are, where ASE has it from this code; else what ASE calls
        `energy`. "extrapolated": always what ASE calls `energy`, which some codes extrapolate to zero smearing.
    moments
        Initial magnetic moments by element, in µB, for frames that carry none. Other elements get 0.
    retry
        Keywords for a frame that is tried again, beside the others or in their place; tables are merged.
    environment
        Variables of the process that calculates. Default: one thread.
    stress
        Ask for the stress where the frame is periodic in three directions and the calculator implements it.
    wall_time
        Seconds, or "hh:mm:ss", that a frame may take; after that its calculation is killed.
    max_force
        Largest force on an atom (eV/Å) that is believed. A frame is quarantined if a force is larger, or if a label is
        not a finite number.
    energy_tolerance, force_tolerance
        Largest difference from the stored labels when a frame is labelled again: in eV/atom, and in eV/Å for each
        component of a force.
    scratch
        Folder for the scratch folders: each calculation has one of its own, which is its working folder. Default: the
        system's folder for temporary files.
    keep
        Keep the scratch folders of successful calculations, too, and wavefunctions and densities. The folders of failed
        ones are always kept, without these.
    energy_key, forces_key, stress_key
        Names of the labels in files that have some already, if they are others than energy, forces and stress; as in
        `quests_md.sources.Reading`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    calculator: _Calculator
    keywords: dict[str, pydantic.JsonValue] = {}  # TOML has dates, too, which are no JSON
    kspacing: _Limit | None = None
    energy: Literal["free", "extrapolated"] = "free"
    moments: dict[str, float] | None = None
    retry: dict[str, pydantic.JsonValue] = {}
    environment: dict[str, str] = {"OMP_NUM_THREADS": "1"}
    stress: bool = True
    wall_time: Seconds = 3600.0
    max_force: _Limit = 50.0
    energy_tolerance: _Limit = 1e-3
    force_tolerance: _Limit = 0.01
    scratch: str | None = None
    keep: bool = False
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> Oracle:
        given = [key for key in MESH_KEYS if key in self.keywords]
        if self.kspacing is not None and given:
            raise ValueError(f"kspacing gives the mesh of k-points: leave {', '.join(given)} out of keywords")
        for symbol in self.moments or ():
            if symbol not in SYMBOLS[1:]:
                raise ValueError(f"moments: {symbol!r} is no element: write them as {{ Fe = 2.3 }}")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Oracle:
        """Read the TOML file of an oracle.

        Raises
        ------
        ConfigError
            The file does not exist or is no TOML; or it has an unknown key or a wrong value.
        """
        return make_settings(cls, read_toml(path), str(path))

    def label_keys(self) -> dict[str, str | None]:
        """Return the names of labels in files, as keywords of `quests_md.sources.Reading`."""
        return {"energy_key": self.energy_key, "forces_key": self.forces_key, "stress_key": self.stress_key}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the labels. Two oracles are the same if these are."""
        found: dict[str, Any] = {"calculator": self.calculator, "keywords": self.keywords}
        # Those that were added later are there only if they are set: older labels have none.
        found |= {} if self.kspacing is None else {"kspacing": self.kspacing}
        found |= {} if self.energy == "free" else {"energy": self.energy}
        return found | ({} if self.moments is None else {"moments": self.moments})

    def make_calculator(self) -> Any:
        """Make the calculator in this process; `InputError` if it cannot be made."""
        try:
            return load(self.calculator)(**call_tables(fill_folder(self.keywords, ".")))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"calculator {self.calculator} cannot be made: {error}") from error

    def keywords_of_try(self, again: bool) -> dict[str, Any]:
        """Return the keywords of the first try, or of those that follow."""
        return _merge(self.keywords, self.retry) if again else dict(self.keywords)


def _merge(table: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a frame, in ASE's units and signs.

    Parameters
    ----------
    energy
        In eV.
    forces
        (n, 3), in eV/Å.
    stress
        (6,), in eV/Å³, in Voigt's order; None if there is none.

    Raises
    ------
    InputError
        A value is not finite, or an array has another shape.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        forces = np.asarray(self.forces, dtype=np.float64)
        if forces.ndim != 2 or forces.shape[1] != 3:
            raise InputError(f"the forces of a label must have shape (n, 3), not {forces.shape}")
        stress = None if self.stress is None else np.asarray(self.stress, dtype=np.float64)
        if stress is not None and stress.shape != (6,):
            raise InputError(f"the stress of a label must have shape (6,), not {stress.shape}")
        values = {"energy": np.asarray(self.energy, dtype=np.float64), "forces": forces, "stress": stress}
        for name, value in values.items():
            if value is not None and not np.isfinite(value).all():
                raise InputError(f"the {name} of a label must be finite")
        object.__setattr__(self, "energy", float(self.energy))
        object.__setattr__(self, "forces", forces)
        object.__setattr__(self, "stress", stress)
