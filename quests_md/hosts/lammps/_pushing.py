"""The forces of a bias, handed to LAMMPS through fix external."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from ...comm import Comm
from ...errors import HostError
from ...frame import AppliedBias, Frame
from ...recording import Session
from ._arrays import FIX, FrameReader
from ._library import Library

__all__ = ["Pushing", "warn_of_heat"]

_FIX = FIX.encode()
_VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # LAMMPS's order of a virial


# In the styles of fixes that keep a temperature; but not of those that keep a pressure alone.
_THERMOSTATS = ("nvt", "npt", "langevin", "temp/", "gle", "gld")


def warn_of_heat(library: Library, comm: Comm) -> None:
    """Print a warning if no fix would take up the heat of a bias. Collective, outside of a run."""
    styles = library.get_fix_styles(comm).values()
    if any(name in style for style in styles if not style.startswith("press/") for name in _THERMOSTATS):
        return
    if comm.rank == 0:
        print(
            "quests_md: WARNING: nothing takes up the heat of the bias yet: define a thermostat (langevin, nvt)",
            file=sys.stderr,
            flush=True,
        )


class Pushing:
    """Add the forces of the bias at every step. Every call is collective.

    Parameters
    ----------
    library
        The LAMMPS.
    session
        The watched run, which has a bias.
    reader
        Makes frames of LAMMPS's memory.

    Raises
    ------
    HostError
        The units have no size in eV.
    """

    def __init__(self, library: Library, session: Session, reader: FrameReader) -> None:
        if reader.force_unit is None:
            raise HostError("a bias has energies in eV, and units lj have none: use units metal or real, or no bias")
        self._library, self._session, self._reader, self._unit = library, session, reader, reader.force_unit
        self._step = -1
        self._applied: AppliedBias | None = None  # at that step
        self._forces: NDArray[np.float64] = np.empty((0, 3))  # in eV/Å

    def push(self, step: int, n_local: int, forces: int | None) -> None:
        """Compute the bias of a step, and give it to LAMMPS: the forces, whose address is `forces`, energy and virial.

        Raises
        ------
        QuestsError
            It cannot be computed, on any rank: on all ranks.
        """
        frame, error = None, None
        try:
            frame = self._reader.read(step, end_of_step=False, moving=True)
        except Exception as caught:  # noqa: BLE001 - the other ranks must hear of any error
            error = caught
        self._step, self._applied, self._forces = step, None, np.zeros((n_local, 3))
        push = self._session.push(frame, step=step, error=error)
        energy, virial = 0.0, np.zeros((3, 3))
        if push is not None:
            self._applied, self._forces = AppliedBias(push.energy, push.largest, push.tau), push.forces
            energy, virial = push.energy, push.virial
            if forces:
                self._library.set_forces(forces, push.forces / self._unit)
        self._library.set_energy(_FIX, energy / self._unit)
        self._library.set_virial(_FIX, [float(virial[i, j]) / self._unit for i, j in _VOIGT])

    def stop(self) -> None:
        """Take the energy and the virial back: LAMMPS keeps them from step to step. It talks to no other rank."""
        self._applied = None
        self._library.set_energy(_FIX, 0.0)
        self._library.set_virial(_FIX, [0.0] * 6)

    def note(self, frame: Frame, end_of_step: bool) -> None:
        """Write the bias into a frame of this step. At the end of a step LAMMPS's forces hold that of the bias."""
        if frame.step != self._step or self._applied is None:
            return
        frame.bias = self._applied
        if end_of_step and frame.forces is not None and len(frame.forces) == len(self._forces):
            frame.forces = frame.forces - self._forces
