"""ASE as host: a calculator that wraps any calculator, and an observer for ``dyn.attach``.

dH is ``calc.dH`` and ``calc.get_property("dH")``, never an entry of ``calc.results``: a key that ASE does not
know breaks ``SinglePointCalculator(**results)`` and ``export_properties``.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import ase
import ase.units
import numpy as np
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
    compare_atoms,
)
from numpy.typing import NDArray

from ..errors import Halted, InputError
from ..frame import Frame
from ..recording import Session

__all__ = ["MonitorObserver", "MonitoredCalculator"]

# dH depends on the geometry alone: other changes make no new configuration.
_NOT_GEOMETRY = ("initial_charges", "initial_magmoms")


class MonitoredCalculator(Calculator):  # type: ignore[misc]
    """Wrap a calculator so that every configuration it computes is watched.

    Name, parameters and results are those of the wrapped calculator, untouched. A calculator knows no step of
    the dynamics: its step counts the configurations it was asked for, from 0, together with the other
    calculators (copies, images of a band) that share the session. Within a step of MD the velocities belong
    to another time than the positions, so saved frames have none. Use `MonitorObserver` where steps and
    velocities matter, or where a line search asks for configurations that are no steps.

    Parameters
    ----------
    calculator
        Any ASE calculator.
    session
        The watched run.

    Attributes
    ----------
    dH
        (n,) dH in nats at the last evaluation, or None before it; ``session.decision.step`` is its step, and
        ``session.decision.values`` says whether upper bounds are among them.

    Raises
    ------
    Halted
        From the call that asks for energy or forces, when the frame lies above the halt threshold; results
        and dH are complete by then, and can be asked for again. Then, before anything is computed, from every
        call that brings another configuration, until ``session.acknowledge()``.
    MonitorError
        From the same calls, if the frame cannot be measured or the session has ended.
    """

    def __init__(self, calculator: Any, session: Session) -> None:
        super().__init__()
        session.host = "ase calculator"
        self.calculator = calculator
        self.parameters = getattr(calculator, "parameters", {})
        self.session = session
        self.dH: NDArray[np.float64] | None = None
        self.implemented_properties = [*calculator.implemented_properties, "dH"]
        self._counted: Any = None  # the last configuration that got a number, as ase.Atoms
        self._measured: tuple[Any, NDArray[np.float64]] | None = None  # a configuration and its dH

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = tuple(all_changes)
    ) -> None:
        """Let the wrapped calculator compute, then watch what is new."""
        super().calculate(atoms, properties, system_changes)
        # Not by system_changes: after a property that failed, ASE says that nothing has changed.
        is_new = self._counted is None or bool(
            compare_atoms(self._counted, self.atoms, excluded_properties=_NOT_GEOMETRY)
        )
        if is_new:
            self.session.check_running()
        is_broken = not np.isfinite(self.atoms.positions).all()
        if is_new and is_broken:
            self._watch()  # before the wrapped calculator fails in words of its own
        values = {name: self.calculator.get_property(name, atoms) for name in properties}
        # Copies: many calculators use their arrays again for the next configuration.
        results = {**getattr(self.calculator, "results", {}), **values}
        self.results = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in results.items()}
        if is_new and not is_broken:
            self._watch()

    def _watch(self) -> None:
        """Give the configuration its number and, if it is due, have it evaluated."""
        step, self._counted = next(self.session.counter), self.atoms
        if not self.session.due(step):
            return
        model = _model(self.results.get("energy"), self.results.get("forces"))
        decision = self.session.observe(Frame.from_atoms(self.atoms, step, velocities=None, **model))
        if decision.evaluated or self.session.given_up:
            self.dH, self._measured = decision.dH, (self.atoms, decision.dH)
        if decision.stop:
            raise Halted(f"step {decision.step}: {'; '.join(decision.reasons)}")

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        """Return a property; "dH" is that of `atoms`, measured now if they are not those last measured."""
        if name != "dH":
            return super().get_property(name, atoms, allow_calculation)
        atoms = self.atoms if atoms is None else atoms
        if self._measured is None or self._measured[0] != atoms:
            if not allow_calculation or atoms is None:
                return None
            self._measured = atoms.copy(), self.session.monitor.measure(Frame.from_atoms(atoms))
        return self._measured[1].copy()

    def set(self, **kwargs: Any) -> Any:
        """Set parameters of the wrapped calculator."""
        if not kwargs:  # ASE's constructor calls this before there is a wrapped calculator
            return {}
        self.results = {}
        return self.calculator.set(**kwargs)

    def reset(self) -> None:
        """Forget all results, here and in the wrapped calculator; a configuration keeps its number."""
        super().reset()
        if hasattr(self.calculator, "reset"):
            self.calculator.reset()

    def todict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parameters of the wrapped calculator."""
        return self.calculator.todict(*args, **kwargs)

    def _get_name(self) -> str:
        return str(self.calculator.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> MonitoredCalculator:
        """Copy the wrapped calculator and the results; the session, with its files, is shared."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.calculator = copy.deepcopy(self.calculator, memo)
        twin.parameters = twin.calculator.parameters
        twin.results = copy.deepcopy(self.results, memo)
        return twin


class MonitorObserver:
    """Watch an ASE dynamics or optimiser: ``dyn.attach(MonitorObserver(session, dyn))``.

    Attach it with the interval 1, the default: the session knows when a step is due. A frame above the halt
    threshold ends the run after its step, as if its last step had been reached; a later ``run`` raises
    `Halted`, after its first step, until ``session.acknowledge()``.

    Parameters
    ----------
    session
        The watched run.
    dyn
        The dynamics or optimiser: it has the step, and the time if it is a dynamics.
    atoms
        The atoms; default those of `dyn`, or of the filter that it moves.

    Attributes
    ----------
    dH
        (n,) dH in nats at the last evaluation, or None before it; ``session.decision.step`` is its step, and
        ``session.decision.values`` says whether upper bounds are among them.

    Raises
    ------
    InputError
        `dyn` moves no single ``ase.Atoms``, and `atoms` was not given.
    """

    def __init__(self, session: Session, dyn: Any, atoms: Any = None) -> None:
        atoms = dyn.atoms if atoms is None else atoms
        while not isinstance(atoms, ase.Atoms) and hasattr(atoms, "atoms"):
            atoms = atoms.atoms  # a filter shows other positions than those of the atoms
        if not isinstance(atoms, ase.Atoms):
            raise InputError(f"{type(dyn).__name__} moves no single ase.Atoms: say which to watch, atoms=...")
        session.host = f"ase {type(dyn).__name__}"
        self.session = session
        self.dyn = dyn
        self.atoms = atoms
        self.dH: NDArray[np.float64] | None = None

    def __call__(self) -> None:
        """Watch the present step, if it is due."""
        self.session.check_running()
        step = int(self.dyn.nsteps)
        if not self.session.due(step):
            return
        time = getattr(self.dyn, "get_time", lambda: float("nan"))() / (1000.0 * ase.units.fs)
        model = _model(self._present("energy"), self._present("forces"))
        decision = self.session.observe(Frame.from_atoms(self.atoms, step, time, **model))
        if decision.evaluated or self.session.given_up:
            self.dH = decision.dH
        if decision.stop:
            # What ASE compares after every step: the run ends here, and its files are closed in order.
            self.dyn.max_steps = self.dyn.nsteps

    def _present(self, name: str) -> Any:
        """Return a result that the calculator has for the present positions; watching computes nothing."""
        with contextlib.suppress(PropertyNotImplementedError, AttributeError, KeyError):
            return self.atoms.calc.get_property(name, self.atoms, allow_calculation=False)
        return None


def _model(energy: Any, forces: Any) -> dict[str, Any]:
    """Return what a frame holds of the running model."""
    return {
        "energy": None if energy is None else float(np.squeeze(energy)),
        "forces": None if forces is None else np.asarray(forces, dtype=np.float64),
    }
