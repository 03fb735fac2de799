"""Residuals: how wrong a potential is on the references of an index."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..notebook import Shown
from ._header import is_count

__all__ = [
    "LARGEST",
    "ORIGINS",
    "SQUARINGS",
    "Residuals",
    "check_residuals",
    "check_several",
    "extend_residuals",
    "find_residuals",
    "fingerprint_residuals",
    "read_entries",
]

ORIGINS: Final = ("training", "held out", "cross-validated")

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
SQUARINGS = (0, 1, 2)
_MOST_NAME = 200  # characters
# No force error is larger, in eV/Å. So no sum of residuals overflows, not even in single precision.
LARGEST = 1e9


@dataclass(frozen=True, eq=False, repr=False)
class Residuals(Shown):
    """The force errors of one potential on the references of an index.

    Parameters
    ----------
    name
        The name of the potential.
    fingerprint
        What tells this potential from others, and from itself after another training: 64 hexadecimal digits.
    origin
        "training": the potential was fitted to these labels, so its errors elsewhere may be larger. "held out": it was
        not. "cross-validated": each error is that of a fit without the frame.
    values
        (n_env,) float32, the error |F_model − F_oracle| of each row of the index in eV/Å, in the order of its rows; nan
        where there is no label. ``values[index.order]`` sorts values that are in the order of the frames.
    squarings
        How narrow the kernel of `Index.local_residuals` is: 0, 1 or 2, each √2 times narrower than the one before.
        `match_residuals` chooses the one that ranks the residuals of the reference best.

    Raises
    ------
    InputError
        An entry is none of these, or no row has an error.
    """

    name: str
    fingerprint: str
    origin: str
    values: NDArray[np.float32]
    squarings: int = 0

    def __post_init__(self) -> None:
        _check_entry(self.name, self.fingerprint, self.origin, self.squarings)
        values = np.array(self.values, np.float32)  # a copy: nobody else changes them
        _check_values(f"the residuals of {self.name}", values)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @property
    def labelled(self) -> int:
        """How many rows have a residual."""
        return int(np.count_nonzero(~np.isnan(self.values)))

    def equals(self, other: Residuals) -> bool:
        """Return whether these are the same residuals of the same potential."""
        return self.to_json() == other.to_json() and np.array_equal(self.values, other.values, equal_nan=True)

    def to_json(self) -> dict[str, Any]:
        """Return all but the values as data of the header of an index file."""
        return {name: getattr(self, name) for name in ("name", "fingerprint", "origin", "squarings")}

    def describe(self) -> dict[str, Any]:
        """Return what a log must hold: what the header says, and of how many rows, with their mean error (eV/Å)."""
        mean = float(np.nanmean(self.values.astype(np.float64)))
        return {**self.to_json(), "labelled": self.labelled, "rows": len(self.values), "mean": mean}


def _check_entry(name: Any, fingerprint: Any, origin: Any, squarings: Any) -> None:
    if not (isinstance(name, str) and name.strip() and name.isprintable() and len(name) <= _MOST_NAME):
        raise InputError(f"residuals: the name of a potential is a line of text, not {str(name)[:50]!r}")
    if not (isinstance(fingerprint, str) and _FINGERPRINT.fullmatch(fingerprint)):
        raise InputError(f"residuals of {name}: a fingerprint is 64 hexadecimal digits, not {str(fingerprint)[:70]!r}")
    if origin not in ORIGINS:
        raise InputError(f"residuals of {name}: the origin is one of {', '.join(ORIGINS)}, not {str(origin)[:50]!r}")
    if not (is_count(squarings) and squarings in SQUARINGS):
        raise InputError(f"residuals of {name}: squarings are one of {SQUARINGS}, not {str(squarings)[:50]!r}")


def _check_values(what: str, values: NDArray[np.float32]) -> None:
    if values.ndim != 1:
        raise InputError(f"{what} are one number for each row, not an array {values.shape}")
    known = values[~np.isnan(values)]
    if not len(known):
        raise InputError(f"{what}: no row has one")
    if known.min() < 0.0 or known.max() > LARGEST:
        raise InputError(f"{what}: they hold values that are no force errors (0 to {LARGEST:g} eV/Å, or nan)")


def check_several(residuals: Sequence[Residuals], n: int) -> None:
    """Raise `InputError` unless these are residuals of different potentials on `n` rows."""
    for one in residuals:
        if len(one.values) != n:
            raise InputError(f"the residuals of {one.name} are those of {len(one.values)} rows, and the index has {n}")
    _check_names([one.name for one in residuals])


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise InputError(f"residuals: two potentials have one name: {', '.join(names)}")


def check_residuals(entries: Sequence[dict[str, Any]], values: NDArray[np.float32] | None, n: int) -> None:
    """Raise `InputError` unless a section (n_potentials, n) has the residuals of `n` rows that a header names."""
    if values is None:
        values = np.empty((0, n), np.float32)
    if values.shape != (len(entries), n):
        raise InputError(f"section residuals: it is not one of {len(entries)} potentials and {n} rows")
    for entry, of_one in zip(entries, values, strict=True):
        _check_values(f"section residuals, {entry['name']}", of_one)


def read_entries(data: Any) -> list[dict[str, Any]]:
    """Return what a header says of its residuals. Files may be hostile.

    Raises
    ------
    ValueError, KeyError, TypeError
        The data cannot be that.
    """
    if not isinstance(data, list):
        raise TypeError("residuals")
    for entry in data:
        if set(entry) != {"name", "fingerprint", "origin", "squarings"}:
            raise ValueError("residuals: entries")
        _check_entry(**entry)
    _check_names([entry["name"] for entry in data])
    return data


def find_residuals(residuals: Sequence[Residuals], name: str | None, where: str) -> Residuals:
    """Return the residuals of a potential, as `Index.residuals_of` says; `where` names the index in an error."""
    names = [one.name for one in residuals]
    if not residuals:
        raise InputError(f"{where} has no residuals; make them: quests-md index residuals INDEX LABELLED")
    if name is None and len(names) > 1:
        raise InputError(f"{where} has residuals of {', '.join(names)}: name one of these potentials")
    if name is not None and name not in names:
        raise InputError(f"{where} has residuals of {', '.join(names)}, not of {name!r}")
    return residuals[0 if name is None else names.index(name)]


def fingerprint_residuals(reference: str, residuals: Residuals) -> str:
    """Return a hash of the residuals and of the fingerprint of the references (`fingerprint`)."""
    told = f"{reference} {residuals.fingerprint} {residuals.squarings} ".encode()
    return hashlib.sha256(told + np.ascontiguousarray(residuals.values, "<f4").tobytes()).hexdigest()


def extend_residuals(
    residuals: Sequence[Residuals], before: NDArray[np.int32], after: NDArray[np.int32]
) -> tuple[Residuals, ...]:
    """Return the residuals of an index that has grown: nan where a row is new.

    Parameters
    ----------
    residuals
        Those of the smaller index.
    before, after
        (n,) and (m,), m ≥ n: `order` of the smaller and of the larger index.
    """
    made = []
    for one in residuals:
        values = np.full(len(after), np.nan, np.float32)  # in the order of the frames
        values[before] = one.values
        made.append(replace(one, values=values[after]))
    return tuple(made)
