"""Adversarial frames: from a frame to one near it that the reference knows less, at little energy.

Molecular dynamics is not needed. An atom climbs dH less the energy over kT, as in D. Schwalbe-Koda, A. R. Tan and
R. Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021), where the uncertainty is that of a committee.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ase
import ase.units
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import FIRE
from numpy.typing import NDArray

from ..bias import Bias, Push
from ..errors import FrameError, InputError
from ..frame import Frame
from ..index import Index

__all__ = ["Attack", "attack"]

_FIRST = 0.01  # Å; a crystal has no slope, so the climb begins next to it
_STEP = 0.05  # Å, the longest step of an atom
_FLAT = 1e-3  # eV/Å; a climb ends where the slope is less


@dataclass(frozen=True)
class Attack:
    """Where a climb came to.

    Attributes
    ----------
    atoms
        The frame with the largest dH that is plausible, with the model's energy and forces as its calculator's results.
    dH
        (n,) of its atoms, in nats.
    before
        The largest dH of the frame that the climb began at, in nats.
    energy
        How much its energy is above that of the first frame, in eV.
    displacement
        The longest way of an atom, in Å.
    steps
        Number of steps.
    ended
        Why the climb ended, in words.
    """

    atoms: Any
    dH: NDArray[np.float64]
    before: float
    energy: float
    displacement: float
    steps: int
    ended: str


class _Pushed(Calculator):  # type: ignore[misc]
    """Energy and forces of a model, less kT·f(dH)."""

    def __init__(self, model: Any, bias: Bias) -> None:
        super().__init__()
        self.implemented_properties = ["energy", "forces"]
        self.model, self.bias = model, bias
        self.energy = 0.0  # of the model
        self.forces: NDArray[np.float64] = np.empty((0, 3))
        self.push: Push | None = None

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = tuple(all_changes)
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.energy = float(self.model.get_potential_energy(self.atoms))
        self.forces = np.array(self.model.get_forces(self.atoms))
        push = self.bias.push(Frame.from_atoms(self.atoms, velocities=None))
        self.push = push
        self.results = {"energy": self.energy + push.energy, "forces": self.forces + push.forces}


def attack(
    atoms: Any,
    calculator: Any,
    index: Index,
    *,
    temperature: float,
    ceiling: float = 20.0,
    floor: float | None = None,
    focus: str = "all",
    steps: int = 50,
    displacement: float = 0.5,
    seed: int = 0,
    threads: int | None = None,
) -> Attack:
    """Climb from a frame to one that the index knows less: a candidate for an oracle, without molecular dynamics.

    Parameters
    ----------
    atoms
        The frame, as ``ase.Atoms``. It is not changed; its constraints are kept.
    calculator
        The ASE calculator of the model.
    index
        The reference.
    temperature
        K. kT is the energy that a nat of dH may cost.
    ceiling, floor, focus
        Those of a bias (`BiasSettings`).
    steps
        Largest number of steps.
    displacement
        Longest way of an atom, in Å. The climb ends before a frame in which one has gone farther.
    seed
        Of the small displacements at which the climb begins.
    threads
        Threads to use; None takes all cores.

    Raises
    ------
    InputError
        A value is out of range, or the index holds own descriptors.
    FrameError, ElementError
        The frame cannot be measured: its atoms overlap, or the index does not know an element.
    """
    for name, value in (("temperature", temperature), ("displacement", displacement), ("steps", steps)):
        if isinstance(value, bool) or not value > 0:
            raise InputError(f"{name} must be above 0, not {value!r}")
    kT = ase.units.kB * temperature
    bias = Bias(
        index,
        {"tau": kT, "ceiling": ceiling, "focus": focus, "largest_force": 1e6}
        | ({} if floor is None else {"floor": floor}),
        threads=threads,
    )
    moving = atoms.copy()
    first = moving.positions.copy()
    moving.calc = model = _Pushed(calculator, bias)
    before = float(index.delta_entropy(Frame.from_atoms(moving, velocities=None), threads).max())
    moving.get_forces()
    energy = model.energy
    if model.push is not None and model.push.off:
        raise FrameError(f"the frame is no place to begin: {model.push.off}")
    moving.rattle(_FIRST, seed=seed)
    good, n, ended = _climb(moving, model, first, steps, displacement)
    dH = index.delta_entropy(Frame.from_atoms(good, velocities=None), threads)
    away = float(np.linalg.norm(good.positions - first, axis=1).max())
    return Attack(good, dH, before, good.info["model_energy"] - energy, away, n, ended)


def _climb(moving: Any, model: _Pushed, first: NDArray[np.float64], steps: int, limit: float) -> tuple[Any, int, str]:
    """Climb until something ends it; return the last good frame with the model's results, the steps, and why."""
    climber = FIRE(moving, logfile=None, maxstep=_STEP)
    good, ended = None, f"{steps} steps"
    for flat in climber.irun(fmax=_FLAT, steps=steps):
        away = float(np.linalg.norm(moving.positions - first, axis=1).max())
        off = model.push.off if model.push is not None else ""
        if off or away > limit:
            ended = off or f"an atom has gone {limit:g} Å"
            break
        good = moving.copy()
        good.info["model_energy"] = model.energy
        good.arrays["model_forces"] = model.forces
        if flat:
            ended = "a summit"
            break
    if good is None:
        raise FrameError(f"the climb cannot begin: {ended}")
    return good, int(climber.nsteps), ended
