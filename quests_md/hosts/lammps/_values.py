"""What LAMMPS sees of a watched run: dH of its atoms, and the global values of a fix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...comm import Comm
from ...monitor import Decision
from ._library import Library

__all__ = ["FIX", "FIX_ATOM", "Values"]

FIX = "quests"  # holds the global values f_quests[1..6]
FIX_ATOM = "quests_dH"  # carries d_dH along with the atoms, and i_quests: the id of the atom whose value it is
_FIX, _FIX_ATOM = FIX.encode(), FIX_ATOM.encode()


class Values:
    """The values of a watched LAMMPS. Nothing here talks to other ranks.

    Parameters
    ----------
    library
        The LAMMPS, which has the two fixes.
    comm
        Its ranks: making this is collective.
    """

    def __init__(self, library: Library, comm: Comm) -> None:
        self._library = library
        # In this group are the atoms that have a value. LAMMPS takes it along with the atoms.
        self._dated = library.get_group_bit(FIX_ATOM, comm)
        self._has_new = True  # whether this rank has atoms that were made since the last evaluation

    @property
    def have_fixes(self) -> bool:
        """Whether LAMMPS still has the fixes that hold the values."""
        return bool(self._library.has_fix(_FIX) and self._library.has_fix(_FIX_ATOM))

    def clear_new_atoms(self) -> None:
        """Set d_dH to 0 for atoms that were made since the last evaluation.

        LAMMPS does not set it: a new atom has the dH of the atom that was at its place in memory before. It may even
        have its id. But it is in no group.
        """
        library = self._library
        if not library.has_array("i_quests"):
            return
        n = library.n_local()
        new = library.get_vector("i_quests", n) != library.get_vector("id", n).astype(np.int32, copy=False)
        new |= (library.get_vector("mask", n) & self._dated) == 0
        if new.any():
            self._has_new = True
            library.get_vector("d_dH", n)[new] = 0.0

    def publish_nothing(self) -> None:
        """Set what LAMMPS sees before the first evaluation. LAMMPS itself would leave what the memory held."""
        self._set_globals((0.0, 0.0, 0.0, 0.0, -1.0, 0.0))
        self._set_dH(0.0)  # after read_restart it is not 0

    def publish(self, decision: Decision, n_saved: int) -> None:
        """Write dH to d_dH and the global values to the fix. LAMMPS sees them at this very step."""
        self._set_dH(decision.dH)
        mean = 0.0 if np.isnan(decision.mean) else decision.mean  # nan: there are no watched atoms
        self._set_globals((decision.maximum, mean, decision.n_select, decision.n_halt, decision.step, n_saved))

    def publish_failure(self, step: int, n_saved: int) -> None:
        """Write inf, never nan: `fix halt` acts on inf and does not see nan."""
        self._set_dH(np.inf)
        self._set_globals((np.inf, np.inf, 0, 0, step, n_saved))

    def _set_dH(self, dH: NDArray[np.float64] | float) -> None:
        library = self._library
        n = library.n_local()
        target = library.get_vector("d_dH", n)
        target[:] = dH
        target[np.isnan(target)] = 0.0
        if self._has_new:
            self._has_new = False
            library.get_vector("i_quests", n)[:] = library.get_vector("id", n)
            mask = library.get_vector("mask", n)
            mask |= self._dated

    def _set_globals(self, values: Sequence[float]) -> None:
        for i, value in enumerate(values, start=1):
            self._library.set_vector(_FIX, i, value)
