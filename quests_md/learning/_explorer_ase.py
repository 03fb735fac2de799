"""Explorations with ASE."""

from __future__ import annotations

from typing import Any

import ase.units
import numpy as np

from ..errors import MissingExtraError
from ..hosts.ase import MonitorObserver
from ..oracle import Potential
from ..recording import LastCovered, Session
from ._job import Job
from ._start import start_of

__all__ = ["AseExplorer"]


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
