"""ASE as host: a calculator that wraps any calculator, and an observer for ``dyn.attach``.

dH is ``calc.dH`` and ``calc.get_property("dH")``, never an entry of ``calc.results``: a key that ASE does not
know breaks ``SinglePointCalculator(**results)`` and ``export_properties``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any

import ase
import ase.units
import numpy as np
from ase.calculators.calculator import (
    BaseCalculator,
    Calculator,
    PropertyNotImplementedError,
    all_changes,
    compare_atoms,
)
from numpy.typing import NDArray

from ..errors import Halted, InputError
from ..frame import Frame
from ._opening import Opening

__all__ = ["MonitorObserver", "MonitoredCalculator"]

# dH depends on the geometry alone: other changes make no new configuration.
_NOT_GEOMETRY = ("initial_charges", "initial_magmoms")


class _OfWrapped:
    """What ASE's base class has under this name; where the wrapped calculator has its own, that.

    Everything else that a `MonitoredCalculator` lacks is looked up in the wrapped one (``__getattr__``); but what the
    base class has is never lacking.

    Parameters
    ----------
    name
        The property that a method returns. One that the wrapped calculator implements is asked for as any
        other, and a configuration is watched before a method is told of it.
    """

    def __init__(self, name: str = "") -> None:
        self._property = name

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, calc: MonitoredCalculator | None, owner: type) -> Any:
        wrapped = None if calc is None else calc.__dict__.get("calculator")  # None: ASE's constructor asks, too
        plain, own = getattr(Calculator, self._name), getattr(type(wrapped), self._name, None)
        if calc is None:
            return plain
        if not callable(plain):
            return getattr(wrapped, self._name, plain)
        if own is None or own is plain or self._property in calc.implemented_properties:
            return plain.__get__(calc, owner)
        return functools.partial(calc._ask, getattr(wrapped, self._name))


class MonitoredCalculator(Calculator):  # type: ignore[misc]
    """Wrap a calculator so that every configuration it computes is watched.

    Name, parameters and results are those of the wrapped calculator, untouched. A calculator knows no step of
    the dynamics: its step counts the configurations it was asked for, from 0, together with the other
    calculators (copies, images of a band) that share the session. Within a step of MD the velocities belong
    to another time than the positions, so saved frames have none. Use `MonitorObserver` where steps and
    velocities matter, or where a line search asks for configurations that are no steps.

    Attributes that it has not are those of the wrapped calculator. One that is set is set here alone:
    ``calc.calculator.command = ...`` sets one of the wrapped calculator.

    Parameters
    ----------
    calculator
        Any ASE calculator.
    session
        The watched run. Or its configuration: a RunConfig, the path of a quests.toml, or a mapping of its keys. Then
        the session is opened by the first configuration that is computed, in the process that computes it; so the
        calculator can be pickled. In `output`, {pid}, {host} and {n} stand for the id of that process, the name of its
        computer, and how many sessions it has opened by that `output` before. With {n} every calculator has a session,
        which ends with it; without, those of a process share one. Deep copies share the session in any case.

    Attributes
    ----------
    session
        The watched run; None where it is yet to be opened in this process.
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
    ConfigError
        The configuration is wrong, or a field in braces in `output` is unknown.
    OutputError
        From the first call, if the configuration's folder holds a run, or is in use.
    """

    default_parameters = _OfWrapped()
    ignored_changes = _OfWrapped()
    discard_results_on_any_change = _OfWrapped()
    get_default_parameters = _OfWrapped()
    read = _OfWrapped()
    band_structure = _OfWrapped()
    get_potential_energies = _OfWrapped("energies")
    get_stresses = _OfWrapped("stresses")
    get_dipole_moment = _OfWrapped("dipole")
    get_charges = _OfWrapped("charges")
    get_magnetic_moment = _OfWrapped("magmom")
    get_magnetic_moments = _OfWrapped("magmoms")

    def __init__(self, calculator: Any, session: Any) -> None:
        super().__init__()
        for name in ("get_spin_polarized", "prefix"):  # ASE's constructor sets them: they would hide the wrapped ones
            self.__dict__.pop(name, None)
        self._opening = Opening(session, "ase calculator", joins=True)
        self.calculator = calculator
        self.parameters = getattr(calculator, "parameters", {})
        self.dH: NDArray[np.float64] | None = None
        self.implemented_properties = [*calculator.implemented_properties, "dH"]
        self._counted: Any = None  # the last configuration that got a number, as ase.Atoms
        self._measured: tuple[Any, NDArray[np.float64]] | None = None  # a configuration and its dH

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped calculator has under this name."""
        # Not self.calculator: there is none while this is unpickled. What Python asks of an object is of it alone.
        wrapped = self.__dict__.get("calculator")
        if wrapped is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"MonitoredCalculator has no attribute {name!r}")
        try:
            return getattr(wrapped, name)
        except AttributeError as error:
            raise AttributeError(f"MonitoredCalculator: {error}") from error

    @property
    def session(self) -> Any:
        """The watched run; None where it is yet to be opened in this process."""
        return self._opening.current

    @session.setter
    def session(self, session: Any) -> None:
        self._opening = Opening(session, "ase calculator", joins=True)

    def close(self) -> None:
        """End the session if it was opened by this calculator of a configuration; a given one is left alone.

        The next configuration that is computed opens it anew, as a new run of a program would.
        """
        self._opening.close(self)

    @property
    def directory(self) -> Any:
        """Folder of the wrapped calculator."""
        return getattr(self.__dict__.get("calculator"), "directory", self._directory)

    @directory.setter
    def directory(self, directory: Any) -> None:
        if "calculator" in self.__dict__:
            self.calculator.directory = directory
        else:  # ASE's constructor
            self._directory = str(directory)

    @property
    def label(self) -> Any:
        """Label of the wrapped calculator."""
        return self.calculator.label

    @label.setter
    def label(self, label: Any) -> None:
        self.calculator.label = label

    def check_state(self, atoms: Any, tol: float = 1e-15) -> Any:
        """Return what has changed: what the wrapped calculator looks at, and every change of the geometry."""
        ignored = set(self.ignored_changes) & set(_NOT_GEOMETRY)
        changes = compare_atoms(self.atoms, atoms, tol=tol, excluded_properties=ignored)
        own = getattr(type(self.calculator), "check_state", None)
        if changes or own in (None, Calculator.check_state, BaseCalculator.check_state):
            return changes
        return self.calculator.check_state(atoms)  # it may see more, such as a file that it reads

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
            with self._opening.watching(self) as session:
                session.check_running()
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
        with self._opening.watching(self) as session:
            step, self._counted = next(session.counter), self.atoms
            if not session.due(step):
                return
            model = _model(self.results.get("energy"), self.results.get("forces"))
            decision = session.observe(Frame.from_atoms(self.atoms, step, velocities=None, **model))
            if decision.evaluated or session.given_up:
                self.dH, self._measured = decision.dH, (self.atoms, decision.dH)
        if decision.stop:
            raise Halted(f"step {decision.step}: {'; '.join(decision.reasons)}")

    def _ask(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the wrapped calculator; atoms that it is given have been watched before."""
        atoms = args[0] if args else kwargs.get("atoms")
        if isinstance(atoms, ase.Atoms) and "energy" in self.implemented_properties:
            self.get_property("energy", atoms)
        return method(*args, **kwargs)

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        """Return a property; "dH" is that of `atoms`, measured now if they are not those last measured."""
        if name != "dH":
            return super().get_property(name, atoms, allow_calculation)
        atoms = self.atoms if atoms is None else atoms
        if self._measured is None or self._measured[0] != atoms:
            if not allow_calculation or atoms is None:
                return None
            with self._opening.watching(self) as session:
                self._measured = atoms.copy(), session.monitor.measure(Frame.from_atoms(atoms))
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
        twin.parameters = getattr(twin.calculator, "parameters", {})
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
        The watched run. Or its configuration, as for `MonitoredCalculator`: then the session is opened at the first
        step that is watched, in the process that runs it, and the observer can be pickled as far as `dyn` can. It is
        never shared, for steps of two dynamics would mix: with {n} in `output` every observer has a folder.
    dyn
        The dynamics or optimiser: it has the step, and the time if it is a dynamics.
    atoms
        The atoms; default those of `dyn`, or of the filter that it moves.

    Attributes
    ----------
    session
        The watched run; None where it is yet to be opened in this process.
    dH
        (n,) dH in nats at the last evaluation, or None before it; ``session.decision.step`` is its step, and
        ``session.decision.values`` says whether upper bounds are among them.

    Raises
    ------
    InputError
        `dyn` moves no single ``ase.Atoms``, and `atoms` was not given.
    ConfigError
        The configuration is wrong, or a field in braces in `output` is unknown.
    OutputError
        When it is called, if the configuration's folder holds a run, or is in use.
    """

    def __init__(self, session: Any, dyn: Any, atoms: Any = None) -> None:
        atoms = dyn.atoms if atoms is None else atoms
        while not isinstance(atoms, ase.Atoms) and hasattr(atoms, "atoms"):
            atoms = atoms.atoms  # a filter shows other positions than those of the atoms
        if not isinstance(atoms, ase.Atoms):
            raise InputError(f"{type(dyn).__name__} moves no single ase.Atoms: say which to watch, atoms=...")
        self._opening = Opening(session, f"ase {type(dyn).__name__}", joins=False)
        self.dyn = dyn
        self.atoms = atoms
        self.dH: NDArray[np.float64] | None = None

    @property
    def session(self) -> Any:
        """The watched run; None where it is yet to be opened in this process."""
        return self._opening.current

    @session.setter
    def session(self, session: Any) -> None:
        self._opening = Opening(session, f"ase {type(self.dyn).__name__}", joins=False)

    def close(self) -> None:
        """End the session if it was opened by this observer of a configuration; a given one is left alone."""
        self._opening.close(self)

    def __call__(self) -> None:
        """Watch the present step, if it is due."""
        with self._opening.watching(self) as session:
            session.check_running()
            step = int(self.dyn.nsteps)
            if not session.due(step):
                return
            time = getattr(self.dyn, "get_time", lambda: float("nan"))() / (1000.0 * ase.units.fs)
            model = _model(self._present("energy"), self._present("forces"))
            decision = session.observe(Frame.from_atoms(self.atoms, step, time, **model))
            if decision.evaluated or session.given_up:
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
