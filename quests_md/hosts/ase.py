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
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ..bias import Push
from ..errors import Halted, InputError
from ..frame import AppliedBias, Frame
from ..monitor import Decision
from ._opening import Opening

__all__ = ["BiasedCalculator", "MonitorObserver", "MonitoredCalculator"]

# dH depends on the geometry alone: a change of these makes no new configuration.
_NOT_GEOMETRY = ("initial_charges", "initial_magmoms")


class _FromWrapped:
    """An attribute that comes from the wrapped calculator if its class defines it, and else from ASE's base class.

    Python calls ``__getattr__`` only for an attribute that a `MonitoredCalculator` does not have. It has all attributes
    of ASE's base class, so ``__getattr__`` cannot pass these on to the wrapped calculator. This descriptor does.

    Parameters
    ----------
    name
        The property that a method returns. If the wrapped calculator implements it, it is computed like any other;
        else the configuration is watched before the method is called.
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


class _Values:
    """What was found out at the last evaluation; None before it."""

    dH: NDArray[np.float64] | None = None
    expected_errors: NDArray[np.float64] | None = None
    error_bounds: NDArray[np.float64] | None = None

    def _take(self, decision: Decision) -> None:
        self.dH = decision.dH
        self.expected_errors, self.error_bounds = decision.expected_errors, decision.force_errors


class MonitoredCalculator(_Values, Calculator):  # type: ignore[misc]
    """Wrap a calculator so that every configuration that it computes is watched.

    Name, parameters and results are those of the wrapped calculator, unchanged. A calculator does not know the step of
    the dynamics. So its step counts the configurations, from 0, together with the other calculators (copies, images of
    a band) that share the session. Saved frames have no velocities, because within a step of MD these belong to another
    time than the positions. Use `MonitorObserver` where steps and velocities matter, or where a line search asks for
    configurations that are no steps.

    Other attributes are those of the wrapped calculator. Setting one sets it here alone; ``calc.calculator.command =
    ...`` sets it in the wrapped calculator.

    Parameters
    ----------
    calculator
        Any ASE calculator.
    session
        The watched run. Or its configuration: a `RunConfig`, the path of a quests.toml, or a mapping of its keys. Then
        the calculator can be pickled, and the session is opened when the first configuration is computed, in the
        process that computes it. In `output`, {pid} stands for the id of that process, {host} for the name of its
        computer, and {n} for the number of sessions that it has opened by that `output` before. With {n} every
        calculator has a session, which ends with it; without {n} the calculators of a process share one. Deep copies
        always share the session.

    Attributes
    ----------
    session
        The watched run; None where it is yet to be opened in this process.
    dH
        (n,) dH in nats at the last evaluation, or None before it; ``session.decision.step`` is its step, and
        ``session.decision.values`` says whether upper bounds are among them.
    expected_errors, error_bounds
        (n,) expected force error of every atom and its bound, in eV/Å, at the same evaluation: nan and inf where dH
        lies beyond the calibration. None without a calibration of local residuals, or of force errors.

    Raises
    ------
    Halted
        The frame lies above the halt threshold. The call that asks for energy or forces raises this; results and dH are
        complete then, and can be asked for again. After that every call with another configuration raises it before
        anything is computed, until ``session.acknowledge()`` is called.
    MonitorError
        The frame cannot be measured, or the session has ended. The same calls raise this.
    ConfigError
        The configuration is wrong, or a field in braces in `output` is unknown.
    OutputError
        By the first call, if the folder of the configuration holds a run or is in use.
    """

    default_parameters = _FromWrapped()
    ignored_changes = _FromWrapped()
    discard_results_on_any_change = _FromWrapped()
    get_default_parameters = _FromWrapped()
    read = _FromWrapped()
    band_structure = _FromWrapped()
    get_potential_energies = _FromWrapped("energies")
    get_stresses = _FromWrapped("stresses")
    get_dipole_moment = _FromWrapped("dipole")
    get_charges = _FromWrapped("charges")
    get_magnetic_moment = _FromWrapped("magmom")
    get_magnetic_moments = _FromWrapped("magmoms")

    def __init__(self, calculator: Any, session: Any) -> None:
        super().__init__()
        for name in ("get_spin_polarized", "prefix"):  # ASE's constructor sets them: they would hide the wrapped ones
            self.__dict__.pop(name, None)
        self._open(session)
        self.calculator = calculator
        self.parameters = getattr(calculator, "parameters", {})
        self.implemented_properties = [*calculator.implemented_properties, "dH"]
        self._counted: Any = None  # the last configuration that got a number, as ase.Atoms
        self._measured: tuple[Any, NDArray[np.float64]] | None = None  # a configuration and its dH

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of the wrapped calculator."""
        # Not self.calculator: there is none while this is unpickled. Special methods are never those of another object.
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
        self._open(session)

    def _open(self, session: Any) -> None:
        self._opening = Opening(session, "ase calculator", joins=True)

    def close(self) -> None:
        """End the session if this calculator has opened it from a configuration; a given session is left alone.

        The next configuration that is computed opens a new one, as a new run of a program would.
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
        """Return the changes that the wrapped calculator looks at, and every change of the geometry."""
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
        # Do not use system_changes: after a property has failed, ASE says that nothing has changed.
        is_new = self._counted is None or bool(
            compare_atoms(self._counted, self.atoms, excluded_properties=_NOT_GEOMETRY)
        )
        if is_new:
            with self._opening.watching(self) as session:
                session.check_running()
        is_broken = not np.isfinite(self.atoms.positions).all()
        if is_new and is_broken:
            self._watch()  # now, because the wrapped calculator may fail
        values = {name: self.calculator.get_property(name, atoms) for name in properties}
        # Copies, because many calculators use their arrays again for the next configuration.
        results = {**getattr(self.calculator, "results", {}), **values}
        self.results = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in results.items()}
        if is_broken:
            return
        model = _make_model(self.results.get("energy"), self.results.get("forces"))
        bias = self._steer(model)
        if is_new:
            self._watch(model, bias)

    def _steer(self, model: dict[str, Any]) -> AppliedBias | None:
        """Add to the results what steers the run, and return it; `BiasedCalculator` does."""
        return None

    def _watch(self, model: dict[str, Any] | None = None, bias: AppliedBias | None = None) -> None:
        """Give the configuration its number, and evaluate it if it is due."""
        with self._opening.watching(self) as session:
            step, self._counted = next(session.counter), self.atoms
            if not session.due(step):
                return
            frame = Frame.from_atoms(self.atoms, step, velocities=None, bias=bias, **(model or {}))
            decision = session.observe(frame)
            if decision.evaluated or session.given_up:
                self._take(decision)
                self._measured = (self.atoms, decision.dH)
        if decision.stop:
            raise Halted(f"step {decision.step}: {'; '.join(decision.reasons)}")

    def _ask(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the wrapped calculator; watch the atoms before, if it is given some."""
        atoms = args[0] if args else kwargs.get("atoms")
        if isinstance(atoms, ase.Atoms) and "energy" in self.implemented_properties:
            self.get_property("energy", atoms)
        return method(*args, **kwargs)

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        """Return a property. "dH" of `atoms` is measured now, unless they are the atoms that were measured last."""
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
        """Copy the wrapped calculator and the results. The copy shares the session with its files."""
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.calculator = copy.deepcopy(self.calculator, memo)
        twin.parameters = getattr(twin.calculator, "parameters", {})
        twin.results = copy.deepcopy(self.results, memo)
        return twin


# Results of a potential that a bias leaves as they are; all others it changes or cannot change.
_UNBIASED = ("dipole", "charges", "magmom", "magmoms", "dH")
_BIASED = ("energy", "free_energy", "forces", "stress")


class BiasedCalculator(MonitoredCalculator):
    """Wrap a calculator so that a run is watched, and steered to where the reference knows less.

    Energy, forces and stress are those of the wrapped calculator and of the bias −τ Σ f(dH) together, which are
    consistent with each other. Saved frames have the forces of the wrapped calculator alone (``model_forces``), and the
    energy and the largest force of the bias. Run it with a thermostat: the bias does work on the atoms. A biased run is
    no equilibrium.

    Parameters
    ----------
    calculator
        Any ASE calculator.
    session
        As for `MonitoredCalculator`, with a `bias`: ``{"strength": 0.1, "ceiling": 10.0}``.

    Attributes
    ----------
    push
        What the bias did to the last configuration, or None: energy (eV), forces (eV/Å), the largest force, τ, and why
        it was off.

    Raises
    ------
    InputError
        The session has no bias.
    Halted, MonitorError, ConfigError, OutputError
        As `MonitoredCalculator`.
    """

    def __init__(self, calculator: Any, session: Any) -> None:
        super().__init__(calculator, session)
        known = calculator.implemented_properties
        self.implemented_properties = [name for name in known if name in _BIASED + _UNBIASED] + ["dH"]
        self.push: Push | None = None
        self._pushed: Any = None  # the configuration of `push`, as ase.Atoms

    def _open(self, session: Any) -> None:
        self._opening = Opening(session, "ase calculator", joins=True, steers=True)

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = tuple(all_changes)
    ) -> None:
        """Let the wrapped calculator compute, add the bias, and watch what is new."""
        super().calculate(atoms, list(dict.fromkeys([*properties, "energy", "forces"])), system_changes)

    def _steer(self, model: dict[str, Any]) -> AppliedBias | None:
        """Add the bias to the results. The same configuration gets the same bias, whatever is asked of it."""
        if self._pushed is None or compare_atoms(self._pushed, self.atoms, excluded_properties=_NOT_GEOMETRY):
            with self._opening.watching(self) as session:
                step = 0 if session.decision is None else session.decision.step
                self.push = session.push(Frame.from_atoms(self.atoms, step, **model), step=step)
            self._pushed = self.atoms
        self.results = {name: value for name, value in self.results.items() if name in _BIASED + _UNBIASED}
        push, results = self.push, self.results
        if push is None:
            return None
        for name in ("energy", "free_energy"):
            if name in results:
                results[name] = results[name] + push.energy
        results["forces"] = results["forces"] + push.forces
        if "stress" in results:
            stress = results["stress"]
            more = -push.virial / self.atoms.get_volume()
            results["stress"] = stress + (more if np.shape(stress) == (3, 3) else full_3x3_to_voigt_6_stress(more))
        return AppliedBias(push.energy, push.largest, push.tau)


class MonitorObserver(_Values):
    """Watch an ASE dynamics or optimiser: ``dyn.attach(MonitorObserver(session, dyn))``.

    Attach it with the interval 1, the default: the session knows when a step is due. A frame above the halt threshold
    ends the run after its step, as if its last step had been reached. A later ``run`` raises `Halted` after its first
    step, until ``session.acknowledge()``.

    Parameters
    ----------
    session
        The watched run. Or its configuration, as for `MonitoredCalculator`: then the session is opened at the first
        step that is watched, in the process that runs it, and the observer can be pickled if `dyn` can. Observers do
        not share a session, because the steps of two dynamics would mix: put {n} into `output` to give each a folder.
    dyn
        The dynamics or optimiser. It has the step, and the time if it is a dynamics.
    atoms
        The atoms; by default those of `dyn`, or of the filter that it moves.

    Attributes
    ----------
    session
        The watched run; None where it is yet to be opened in this process.
    dH
        (n,) dH in nats at the last evaluation, or None before it; ``session.decision.step`` is its step, and
        ``session.decision.values`` says whether upper bounds are among them.
    expected_errors, error_bounds
        (n,) expected force error of every atom and its bound, in eV/Å, at the same evaluation: nan and inf where dH
        lies beyond the calibration. None without a calibration of local residuals, or of force errors.

    Raises
    ------
    InputError
        `dyn` moves no single ``ase.Atoms``, and `atoms` was not given.
    ConfigError
        The configuration is wrong, or a field in braces in `output` is unknown.
    OutputError
        By the first call, if the folder of the configuration holds a run or is in use.
    """

    def __init__(self, session: Any, dyn: Any, atoms: Any = None) -> None:
        if atoms is None and not hasattr(dyn, "atoms"):
            raise InputError(f"dyn is a {type(dyn).__name__}, which moves no atoms: MonitorObserver(session, dyn)")
        atoms = dyn.atoms if atoms is None else atoms
        while not isinstance(atoms, ase.Atoms) and hasattr(atoms, "atoms"):
            atoms = atoms.atoms  # a filter has other positions than the atoms
        if not isinstance(atoms, ase.Atoms):
            raise InputError(f"{type(dyn).__name__} moves no single ase.Atoms: say which to watch, atoms=...")
        self._opening = Opening(session, f"ase {type(dyn).__name__}", joins=False)
        self.dyn = dyn
        self.atoms = atoms

    def __repr__(self) -> str:
        return f"<MonitorObserver: {len(self.atoms)} atoms, {self.session!r}>"

    @property
    def session(self) -> Any:
        """The watched run; None where it is yet to be opened in this process."""
        return self._opening.current

    @session.setter
    def session(self, session: Any) -> None:
        self._opening = Opening(session, f"ase {type(self.dyn).__name__}", joins=False)

    def close(self) -> None:
        """End the session if this observer has opened it from a configuration; a given session is left alone."""
        self._opening.close(self)

    def __call__(self) -> None:
        """Watch the present step if it is due."""
        with self._opening.watching(self) as session:
            session.check_running()
            step = int(self.dyn.nsteps)
            if not session.due(step):
                return
            time = getattr(self.dyn, "get_time", lambda: float("nan"))() / (1000.0 * ase.units.fs)
            model = _make_model(self._get_present("energy"), self._get_present("forces"))
            decision = session.observe(Frame.from_atoms(self.atoms, step, time, **model))
            if decision.evaluated or session.given_up:
                self._take(decision)
        if decision.stop:
            # ASE compares these after every step: so the run ends here, and its files are closed in order.
            self.dyn.max_steps = self.dyn.nsteps

    def _get_present(self, name: str) -> Any:
        """Return a result that the calculator has for the present positions, or None: watching computes nothing."""
        with contextlib.suppress(PropertyNotImplementedError, AttributeError, KeyError):
            return self.atoms.calc.get_property(name, self.atoms, allow_calculation=False)
        return None


def _make_model(energy: Any, forces: Any) -> dict[str, Any]:
    """Return what a frame holds of the running model: its energy and forces."""
    return {
        "energy": None if energy is None else float(np.squeeze(energy)),
        "forces": None if forces is None else np.asarray(forces, dtype=np.float64),
    }
