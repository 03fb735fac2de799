"""Constants, and the check that all tables share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.constants import physical_constants

from ..errors import InputError

K_B: float = physical_constants["Boltzmann constant in eV/K"][0]
EV_PER_GPA = 6.241509074e-3  # eV/Å³ of a GPa


def columns(given: Mapping[str, ArrayLike], positive: tuple[str, ...] = ()) -> dict[str, NDArray[np.float64]]:
    """Return columns of a table as arrays: of one length, finite, and `positive` ones above zero.

    Raises
    ------
    InputError
        They are not; the message names the column, and the row that it begins to be wrong at.
    """
    found = {name: _column(name, values) for name, values in given.items()}
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the columns of a table must be of one length: {lengths}")
    for name, values in found.items():
        bad = ~np.isfinite(values) | ((values <= 0) if name in positive else False)
        if bad.any():
            row, what = int(bad.argmax()), "positive numbers" if name in positive else "numbers"
            raise InputError(f"{name} must hold {what}, and row {row} (from 0) is {values[row]}")
    return found


def errors_of(name: str, error: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return standard errors (n,): zero where none are given.

    Raises
    ------
    InputError
        There are not n of them, or one is negative or not finite.
    """
    if error is None:
        return np.zeros(n)
    values = np.broadcast_to(_numbers(name, error), (n,)) if np.ndim(error) == 0 else _column(name, error)
    if len(values) != n or not (np.isfinite(values) & (values >= 0)).all():
        raise InputError(f"{name} must hold {n} standard errors, none of them negative")
    return np.array(values)


def _column(name: str, values: ArrayLike) -> NDArray[np.float64]:
    column = _numbers(name, values)
    if column.ndim != 1:
        raise InputError(f"{name} must be a column (n,), not of shape {column.shape}")
    return column


def _numbers(name: str, values: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must hold numbers") from None
