"""Own descriptors: rows that another program has computed, such as SOAP vectors or the features of a network."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError

__all__ = ["OwnDescriptors"]

_LONGEST_NAME = 200
_MOST_COLUMNS = 1 << 24


@dataclass(frozen=True)
class OwnDescriptors:
    """What is known of own descriptors: it stands where a `DescriptorSpec` stands, and computes nothing.

    Parameters
    ----------
    name
        What they are, for people: "SOAP, r_cut 5 Å, n_max 6, l_max 4".
    width
        Number of columns of a row.

    Raises
    ------
    InputError
        The name is no line of text, or the width no positive whole number.
    """

    name: str
    width: int

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isprintable() and 0 < len(self.name) <= _LONGEST_NAME):
            raise InputError(f"the name of own descriptors must be one line of text, not {self.name!r}")
        if isinstance(self.width, bool) or not isinstance(self.width, int) or not 0 < self.width <= _MOST_COLUMNS:
            raise InputError(f"the width of own descriptors must be a number of columns, not {self.width!r}")

    @property
    def by_centre(self) -> bool:
        """False: every query is compared with all rows, whatever the elements of their centres."""
        return False
