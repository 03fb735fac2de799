"""ASE as host: what a wrapping calculator hands on of the one that it wraps."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from watched import columns_of, copper

from quests_md.hosts.ase import MonitoredCalculator


class Own(EMT):
    """A calculator with much of its own."""

    ignored_changes: ClassVar = {"pbc", "initial_charges"}
    default_parameters: ClassVar = {**EMT.default_parameters, "mixing": 0.3}
    discard_results_on_any_change = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = []
        self.files_changed = False
        self._secret = 4

    @property
    def command(self):
        return "emt.x"

    @property
    def broken(self):
        return self.no_such_thing

    def calculate(self, atoms, properties, system_changes):
        self.calls.append("calculate")
        self.files_changed = False
        super().calculate(atoms, properties, system_changes)

    def get_charges(self, atoms):
        self.calls.append("get_charges")
        return np.full(len(atoms), 0.5)

    def get_stresses(self, atoms=None):
        self.calls.append("get_stresses")
        return np.zeros((len(self.atoms), 6))

    def get_spin_polarized(self):
        return True

    def get_fermi_level(self):
        return -1.5

    def band_structure(self):
        return "bands"

    def read(self, label):
        self.calls.append(f"read {label}")

    def check_state(self, atoms, tol=1e-15):
        return ["positions"] if self.files_changed else super().check_state(atoms, tol)


@pytest.fixture
def atoms(session):
    atoms = copper()
    atoms.calc = MonitoredCalculator(Own(), session())
    return atoms


def test_every_attribute_that_is_not_its_own_is_handed_on(atoms):
    calc, own = atoms.calc, atoms.calc.calculator
    assert (calc.command, calc._secret, calc.calls) == ("emt.x", 4, [])
    assert (calc.get_fermi_level(), calc.get_spin_polarized(), calc.band_structure()) == (-1.5, True, "bands")
    assert calc.ignored_changes == own.ignored_changes
    assert calc.default_parameters == calc.get_default_parameters() == own.default_parameters
    assert calc.discard_results_on_any_change is True
    calc.read("there")
    assert own.calls == ["read there"]
    assert calc.implemented_properties == [*own.implemented_properties, "dH"]
    assert calc.results is not own.results


def test_what_is_set_is_set_here(atoms):
    calc = atoms.calc
    calc.command, calc.note, calc.ignored_changes = "mine", "new", set()
    assert (calc.command, calc.note, calc.ignored_changes) == ("mine", "new", set())
    assert calc.calculator.command == "emt.x"
    assert not hasattr(calc.calculator, "note")


def test_folder_and_label_are_those_of_the_wrapped_calculator(atoms, tmp_path):
    calc, own = atoms.calc, atoms.calc.calculator
    calc.directory = tmp_path / "run"
    assert calc.directory == own.directory == str(tmp_path / "run")
    calc.set_label(f"{tmp_path}/other/job")
    assert (calc.label, calc.prefix, calc.directory) == (own.label, "job", f"{tmp_path}/other")


def test_what_neither_has_is_an_attribute_error(atoms):
    with pytest.raises(AttributeError, match="'Own' object has no attribute 'nothing'"):
        _ = atoms.calc.nothing
    with pytest.raises(AttributeError, match="no attribute 'no_such_thing'"):
        _ = atoms.calc.broken
    assert not hasattr(atoms.calc, "__array__")
    assert not hasattr(MonitoredCalculator.__new__(MonitoredCalculator), "anything")  # not for ever
    assert MonitoredCalculator.ignored_changes == Calculator.ignored_changes


def test_a_method_of_its_own_is_asked_of_what_has_been_watched(atoms):
    np.testing.assert_array_equal(atoms.get_charges(), 0.5)
    assert atoms.calc.calls == ["calculate", "get_charges"]
    assert columns_of(atoms.calc.session, "step") == [(0.0,)]
    assert atoms.get_stresses().shape == (32, 6)
    assert atoms.calc.get_stresses().shape == (32, 6)
    atoms.positions[0, 0] += 0.01
    atoms.get_stresses()
    atoms.get_forces()
    assert columns_of(atoms.calc.session, "step") == [(0.0,), (1.0,)]
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_magnetic_moments()


def test_a_method_of_a_property_asks_for_the_property(session):
    class Charged(Own):
        implemented_properties = (*EMT.implemented_properties, "charges")

        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["charges"] = np.full(len(self.atoms), 0.25)

    atoms = copper()
    atoms.calc = MonitoredCalculator(Charged(), session())
    np.testing.assert_array_equal(atoms.get_charges(), 0.25)
    assert atoms.calc.session.n_evaluated == 1


def test_changes_are_those_that_the_wrapped_calculator_sees(atoms):
    atoms.get_forces()
    atoms.set_initial_charges(np.full(32, 0.1))
    assert not atoms.calc.calculation_required(atoms, ["forces"])
    atoms.set_initial_magnetic_moments(np.full(32, 0.1))
    assert atoms.calc.calculation_required(atoms, ["forces"])
    atoms.get_forces()
    calls = len(atoms.calc.calls)
    atoms.calc.calculator.files_changed = True
    atoms.calc.calculator.results = {}
    atoms.get_forces()
    assert len(atoms.calc.calls) == calls + 1
    assert atoms.calc.session.n_evaluated == 1


def test_a_geometry_is_watched_though_the_wrapped_calculator_ignores_what_changed(atoms):
    atoms.get_forces()
    atoms.pbc = (True, True, False)
    atoms.get_forces()
    assert atoms.calc.session.n_evaluated == 2


def test_a_wrapped_calculator_need_not_be_one_of_ase(session):
    class Foreign:
        name, implemented_properties = "foreign", ("energy", "forces")

        def get_property(self, name, atoms, allow_calculation=True):
            return {"energy": 1.0, "forces": np.zeros((len(atoms), 3))}[name]

        def get_number_of_bands(self):
            return 7

    atoms = copper()
    atoms.calc = MonitoredCalculator(Foreign(), session())
    assert (atoms.get_potential_energy(), atoms.calc.get_number_of_bands()) == (1.0, 7)
    assert (atoms.calc.ignored_changes, atoms.calc.parameters) == (set(), {})
    assert copy.deepcopy(atoms).calc.get_number_of_bands() == 7
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_charges()


def test_copies_hand_on_what_their_own_calculator_has(index, tmp_path):
    index.save(tmp_path / "cu.qindex")
    keys = {"index": str(tmp_path / "cu.qindex"), "select": 2.0, "halt": 30.0, "output": str(tmp_path / "uq")}
    inner = LennardJones()
    inner.note = ["mine"]
    calc = MonitoredCalculator(inner, keys)
    for twin in (copy.deepcopy(calc), pickle.loads(pickle.dumps(calc)), copy.copy(copy.deepcopy(calc))):
        twin.note.append("theirs")
        assert twin.note is twin.calculator.note
        assert twin.get_spin_polarized.__self__ is twin.calculator
    assert calc.note == ["mine"]
