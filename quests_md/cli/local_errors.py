"""What an index with residuals says of force errors, beside dH: columns of atoms, and their summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..index import Index, LocalBound

__all__ = ["LocalErrors", "choose_local_errors", "join_columns", "summarise_columns"]

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class LocalErrors:
    """The residuals of one potential in an index, and what they are calibrated to.

    Attributes
    ----------
    potential
        Its name.
    bound
        Its calibration, or None.
    """

    potential: str
    bound: LocalBound | None

    def list_columns(
        self, dH: NDArray[np.float64], s: NDArray[np.float64], numbers: NDArray[np.int64] | None
    ) -> Columns:
        """Return columns of environments (n,) in eV/Å: their local residuals and, if calibrated, what these mean.

        `numbers` are those of their centres; None for own descriptors.
        """
        if self.bound is None:
            return {"local_residual": s}
        z = np.zeros(len(dH), np.int64) if numbers is None else numbers
        return {
            "local_residual": s,
            "expected_error": self.bound.expected(dH, s, z),
            "error_bound": self.bound.bound(dH, s, z),
        }


def choose_local_errors(index: Index, potential: str | None) -> LocalErrors | None:
    """Return the residuals of a potential; without a name the calibrated ones, or the only ones; None if neither.

    Raises
    ------
    InputError
        The index has no residuals of the potential that is named.
    """
    bound = index.calibration.local_error if index.calibration else None
    if potential is None and bound is not None:
        potential = bound.potential
    if potential is None and len(index.residuals) != 1:
        return None
    name = index.residuals_of(potential).name
    return LocalErrors(name, bound if bound is not None and bound.potential == name else None)


def summarise_columns(columns: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Return the largest finite value of each column, nan if it has none; and the share of environments outside."""
    numbers: dict[str, float] = {}
    for name, values in columns.items():
        known = values[np.isfinite(values)]
        numbers[f"max_{name}"] = float(known.max()) if len(known) else np.nan
    if "expected_error" in columns and len(columns["expected_error"]):
        numbers["outside"] = float(np.isnan(columns["expected_error"]).mean())
    return numbers


def join_columns(parts: Sequence[Columns]) -> Columns:
    """Return the columns of all frames, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
