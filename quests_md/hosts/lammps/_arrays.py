"""LAMMPS's arrays as a `Frame`: units, elements, groups, ghosts. And the arrays that LAMMPS sees dH in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase.units
import numpy as np
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from ...comm import Comm, raise_together
from ...config import RunConfig
from ...errors import ElementError, HostError
from ...frame import Frame
from ...index import Described, Index, Live
from ...monitor import Decision
from ...own_function import OwnFunction
from ._ghosts import find_missing_ghosts
from ._library import Library

__all__ = ["FIX", "FIX_ATOM", "FIX_ERROR", "FrameReader", "Values"]

FIX = "quests"  # holds the global values f_quests[1..6]
FIX_ATOM = "quests_dH"  # carries d_dH along with the atoms, and i_quests: the id of the atom whose value it is
# Carries d_error, if errors are expected. It is a fix of its own: a restart file holds what each fix carries, and one
# that carries more than it did would read beyond that.
FIX_ERROR = "quests_error"
_FIX, _FIX_ATOM, _FIX_ERROR = FIX.encode(), FIX_ATOM.encode(), FIX_ERROR.encode()
# From this version on, LAMMPS makes an array current when it is asked for it while KOKKOS is active.
_KOKKOS = 20260704
# The mass of a type may differ from that of its element by this share. Isotopes lie within it, most neighbouring
# elements do not.
_MASS_TOLERANCE = 0.02


@dataclass(frozen=True)
class _Units:
    """LAMMPS's units in those of ASE; None where a unit has no fixed size."""

    length: float  # Å
    time: float  # ps
    force: float | None  # eV/Å
    skin: float  # LAMMPS's default of `neighbor`, in its own length unit


_UNITS = {
    "metal": _Units(1.0, 1.0, 1.0, 2.0),
    "real": _Units(1.0, 1e-3, ase.units.kcal / ase.units.mol, 2.0),
}


class FrameReader:
    """Make a `Frame` of the atoms and ghosts of this rank.

    Raises
    ------
    HostError, ElementError
        LAMMPS cannot be watched as it is set up.
    """

    def __init__(self, library: Library, config: RunConfig, index: Index | Described | Live) -> None:
        if library.get_setting("kokkos_active") == 1 and library.version < _KOKKOS:
            raise HostError(
                f"KOKKOS is active in LAMMPS {library.version}, where arrays may be old when they are read: use LAMMPS "
                f"{_KOKKOS} or later, or run without -k on and -sf kk"
            )
        self._library = library
        self._config = config
        spec = index.spec
        self._cutoff = None if isinstance(spec, OwnFunction) else spec.cutoff  # None: ghosts are not used
        self._units = _find_units(library.get_text("units"), config.length_unit)
        self._numbers = _find_numbers(config.elements, library.get_setting("ntypes"), index)
        self._bit = 0  # the bit of the group in the atoms' mask
        self._checked = False
        self._noted: tuple[int, bytes] | None = None  # step and box when the ghosts were last current

    def prepare(self, comm: Comm) -> None:
        """Find the group and check the ghosts, before a run. Collective; errors are raised on all ranks."""
        self._bit = self._library.get_group_bit(self._config.group, comm)
        if self._cutoff is not None:
            self._check_ghosts(self._cutoff, comm)

    def _check_ghosts(self, cutoff: float, comm: Comm) -> None:
        error: HostError | None = None
        pbc = self._library.get_box()[2]
        lines = (line.partition("=") for line in self._library.list_info("communication", comm.rank))
        communication = {key.strip(): value.strip() for key, _, value in lines if value}
        if comm.rank == 0 and (comm.size > 1 or pbc.any()):
            skin = self._units.skin if self._config.skin is None else self._config.skin
            needed = cutoff / self._units.length + skin
            found = float(communication.get("Communication cutoff", 0.0))
            if communication.get("Communication mode", "single") != "single":
                error = HostError("comm_modify mode multi: ghosts of some types reach less far; use mode single")
            elif found < needed * (1 - 1e-12):
                known = "" if found else ", as far as is known before the first run"
                error = HostError(
                    f"ghost atoms reach {found:g}{known}, but the neighbours of an atom reach {cutoff:g} Å plus "
                    f"a skin of {skin:g}: put `comm_modify cutoff {needed:g}` before attaching (if `neighbor` is not "
                    "at its default, give skin = its value)"
                )
        raise_together(comm, error)

    def count_ghosts(self, frame: Frame | None, comm: Comm) -> HostError | None:
        """Return an error, on all ranks, if ghosts are missing. Collective."""
        return None if self._cutoff is None else find_missing_ghosts(frame, self._cutoff, comm)

    def note_box(self, step: int) -> None:
        """Remember the box of a step. Call it after the forces have been computed: then the ghosts are current."""
        self._noted = step, self._library.get_box_bytes()

    @property
    def force_unit(self) -> float | None:
        """LAMMPS's unit of force in eV/Å, and so of energy in eV; None where it has no fixed size."""
        return self._units.force

    def read(self, step: int, end_of_step: bool, moving: bool = False) -> Frame:
        """Return the atoms and ghosts of this rank. Arrays view LAMMPS's memory where the units are those of ASE.

        Velocities are read only at the end of a step: within the step they are half a step off, which is good enough
        for a temperature (`moving`).
        """
        library, units = self._library, self._units
        if (
            end_of_step
            and self._noted is not None
            and self._noted[0] == step
            and self._noted[1] != library.get_box_bytes()
        ):
            raise HostError(
                "a fix has changed the box since the ghost atoms were placed (deform, press/berendsen): define the "
                "fix that calls quests_step before it, or give it post_force in place of end_of_step"
            )
        if not end_of_step and library.has_number("respa_levels"):
            raise HostError("run_style respa calls fix external at its first step only: use run_style verlet")
        n_local = library.n_local()
        n = n_local + library.n_ghost()
        if not self._checked:
            self._check_masses()
            self._checked = True
        ids = library.get_vector("id", n)
        if n_local and ids[:n_local].min() < 1:
            raise HostError("atoms have no ids: remove `atom_modify id no`")
        cell, origin, pbc = library.get_box()
        positions = library.get_matrix("x", n)
        velocities = forces = None
        if units.force is not None:
            forces = library.get_matrix("f", n_local)
            forces = forces if units.force == 1.0 else forces * units.force
            if end_of_step or moving:
                velocities = library.get_matrix("v", n_local) * (units.length / (units.time * 1000.0 * ase.units.fs))
        return Frame(
            positions if units.length == 1.0 else positions * units.length,
            self._numbers[library.get_vector("type", n)],
            cell * units.length,
            pbc,
            ids=ids,
            step=step,
            time=self._time(step),
            n_local=n_local,
            origin=origin * units.length,
            watched=(library.get_vector("mask", n_local) & self._bit) != 0,
            velocities=velocities,
            forces=forces,
            n_expected=library.n_atoms,
        )

    def _time(self, step: int) -> float:
        """Return the simulated time in ps. The time step may have changed during the run."""
        library = self._library
        since = step - library.get_step("atimestep")
        return float((library.get_number("atime") + since * library.get_number("dt")) * self._units.time)

    def _check_masses(self) -> None:
        """Raise `ElementError` if the mass of a type is not that of its element. Masses are set when a run begins."""
        library, config = self._library, self._config
        if not config.check_masses or self._units.force is None or library.has_array("rmass"):
            return
        masses = library.get_vector("mass", len(self._numbers))
        for kind in range(1, len(self._numbers)):
            number, mass = self._numbers[kind], masses[kind]
            if number and abs(mass - atomic_masses[number]) > _MASS_TOLERANCE * atomic_masses[number]:
                assert config.elements is not None
                raise ElementError(
                    f"type {kind} has the mass {mass:g}, but {config.elements[kind - 1]} has "
                    f"{atomic_masses[number]:.4g}: elements must be in the order of the types "
                    "(for isotopes, check_masses = false)"
                )


def _find_units(name: str, length_unit: float | None) -> _Units:
    if name == "lj":
        if length_unit is None:
            raise HostError("units lj: give length_unit, the number of Å of one length unit")
        return _Units(length_unit, float("nan"), None, 0.3)
    if name not in _UNITS:
        raise HostError(f"units {name} are not supported: use metal, real or lj")
    if length_unit is not None:
        raise HostError(f"length_unit is for units lj; this LAMMPS uses units {name}")
    return _UNITS[name]


def _find_numbers(
    elements: tuple[str, ...] | None, n_types: int, index: Index | Described | Live
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the atomic number of every type, entry 0 unused."""
    if elements is None:
        raise ElementError(
            f'elements must be given, one symbol for each of the {n_types} atom types: elements = ["Si"]'
        )
    if len(elements) != n_types:
        raise ElementError(f"elements names {len(elements)} types ({', '.join(elements)}), LAMMPS has {n_types}")
    numbers = np.zeros(n_types + 1, np.int64)
    for kind, symbol in enumerate(elements, start=1):
        if symbol == "NULL":
            continue
        if symbol not in atomic_numbers or symbol == "X":
            raise ElementError(f"elements: {symbol!r} is not a chemical symbol (NULL is for types that are no atoms)")
        numbers[kind] = atomic_numbers[symbol]
    index.check_elements(numbers)
    return numbers


class Values:
    """The values of a watched LAMMPS. Nothing here talks to other ranks.

    Parameters
    ----------
    library
        The LAMMPS, which has the two fixes.
    comm
        Its ranks: making this is collective.
    has_errors
        Whether it is told what force errors are expected, too: then d_error is there.
    """

    def __init__(self, library: Library, comm: Comm, has_errors: bool = False) -> None:
        self._library, self._has_errors = library, has_errors
        # In this group are the atoms that have a value. LAMMPS takes it along with the atoms.
        self._dated = library.get_group_bit(FIX_ATOM, comm)
        self._has_new = True  # whether this rank has atoms that were made since the last evaluation

    @property
    def have_fixes(self) -> bool:
        """Whether LAMMPS still has the fixes that hold the values."""
        has_fix = self._library.has_fix
        return bool(has_fix(_FIX) and has_fix(_FIX_ATOM) and (not self._has_errors or has_fix(_FIX_ERROR)))

    def clear_new_atoms(self) -> None:
        """Set d_dH (and d_error) to 0 for atoms that were made since the last evaluation.

        LAMMPS does not set it: a new atom has the dH of the atom that was at its place in memory before. It may even
        have its id. But it is in no group.
        """
        library = self._library
        if not library.has_array("i_quests"):
            return
        n = library.n_local()
        new = library.get_vector("i_quests", n) != library.get_vector("id", n).astype(np.int32, copy=False)
        new |= (library.get_vector("mask", n) & self._dated) == 0
        if new.any():
            self._has_new = True
            library.get_vector("d_dH", n)[new] = 0.0
            if self._has_errors:
                library.get_vector("d_error", n)[new] = 0.0

    def publish_nothing(self) -> None:
        """Set what LAMMPS sees before the first evaluation. LAMMPS itself would leave what the memory held."""
        self._set_globals((0.0, 0.0, 0.0, 0.0, -1.0, 0.0), (0.0, 0.0))
        self._set_dH(0.0, 0.0)  # after read_restart it is not 0

    def publish(self, decision: Decision, n_saved: int) -> None:
        """Write dH to d_dH and the global values to the fix. LAMMPS sees them at this very step."""
        self._set_dH(decision.dH, self._find_errors(decision) if self._has_errors else 0.0)
        mean = 0.0 if np.isnan(decision.mean) else decision.mean  # nan: there are no watched atoms
        counts = decision.n_select, decision.n_halt, decision.step, n_saved
        # Where dH is beyond the calibration, no error can be expected: inf, as for a failure.
        largest = np.inf if decision.n_outside else 0.0
        largest = largest if decision.expected_error != decision.expected_error else decision.expected_error
        outside = decision.n_outside / decision.n if decision.n else 0.0
        self._set_globals((decision.maximum, mean, *counts), (largest, outside))

    def _find_errors(self, decision: Decision) -> NDArray[np.float64] | float:
        """Return what d_error shall be: inf outside of the calibration, 0 for atoms that are not watched."""
        if decision.expected_errors is None or decision.force_errors is None:
            return np.inf if len(decision.dH) else 0.0  # the frame is broken
        errors = np.where(np.isnan(decision.expected_errors), np.inf, decision.expected_errors)
        return np.where(np.isnan(decision.force_errors), 0.0, errors)

    def publish_failure(self, step: int, n_saved: int) -> None:
        """Write inf, never nan: `fix halt` acts on inf and does not see nan."""
        self._set_dH(np.inf, np.inf)
        self._set_globals((np.inf, np.inf, 0, 0, step, n_saved), (np.inf, 0.0))

    def _set_dH(self, dH: NDArray[np.float64] | float, errors: NDArray[np.float64] | float) -> None:
        library = self._library
        n = library.n_local()
        target = library.get_vector("d_dH", n)
        target[:] = dH
        target[np.isnan(target)] = 0.0
        if self._has_errors:
            library.get_vector("d_error", n)[:] = errors
        if self._has_new:
            self._has_new = False
            library.get_vector("i_quests", n)[:] = library.get_vector("id", n)
            mask = library.get_vector("mask", n)
            mask |= self._dated

    def _set_globals(self, values: Sequence[float], errors: Sequence[float]) -> None:
        for i, value in enumerate([*values, *(errors if self._has_errors else ())], start=1):
            self._library.set_vector(_FIX, i, value)
