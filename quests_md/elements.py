"""Chemical symbols by atomic number. The core imports no ase, and this list is final."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from .errors import ElementError

__all__ = ["SYMBOLS", "check_elements", "name_of", "numbers_of"]

_ROWS = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K "
    "Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y "
    "Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr "
    "Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au "
    "Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es "
    "Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og "
)

SYMBOLS: tuple[str, ...] = tuple(_ROWS.split())


def name_of(number: float) -> str:
    """Return the symbol of an atomic number, or a text which says that the number is no atomic number."""
    is_element = 1 <= number < len(SYMBOLS) and number == int(number)
    return SYMBOLS[int(number)] if is_element else f"{number:g} (no atomic number)"


@lru_cache(maxsize=64)  # every evaluation looks up the elements of the reference
def numbers_of(symbols: tuple[str, ...]) -> frozenset[int]:
    """Return the atomic numbers of chemical symbols, and 0, which is no atom."""
    return frozenset(z for z, symbol in enumerate(SYMBOLS) if z == 0 or symbol in symbols)


def check_elements(known: Sequence[str], numbers: NDArray[Any]) -> None:
    """Raise `ElementError` if `numbers` holds an element that is not among the symbols `known`."""
    numbers_known = numbers_of(tuple(known))
    if numbers_known.issuperset(numbers.tolist()):
        return
    unknown = [SYMBOLS[z] for z in numbers if z not in numbers_known]
    raise ElementError(
        f"{', '.join(unknown)} is not in the index, which knows {', '.join(known)}: "
        "build the index of a reference that holds it"
    )
