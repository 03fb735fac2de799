"""Thresholds as options: a number of nats, or what the calibration of an index turns into nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ..errors import InputError
from ..hosts.mpi import launched_rank
from ..index import Index, check_threshold, resolve_threshold

__all__ = [
    "THRESHOLD",
    "convert_threshold",
    "count_atoms",
    "resolve",
    "thresholds_option",
    "typical_counts",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def convert_threshold(value: Any) -> Any:
    """Convert an option: a number of nats, or KEY=NUMBER,... to a mapping."""
    try:
        if isinstance(value, float) or "=" not in value:
            return float(value)
        return {key.strip(): float(number) for key, _, number in (part.partition("=") for part in value.split(","))}
    except ValueError:
        raise click.BadParameter(f"a number of nats, or KEY=NUMBER,..., not {value!r}") from None


class _Threshold(click.ParamType):  # type: ignore[type-arg] # generic in some versions of click only
    """A threshold of dH, checked: nats, or a rate."""

    name = "threshold"

    def __init__(self, finite: bool = False) -> None:
        self._finite = finite

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):  # click converts a default, too
            return value
        made = convert_threshold(value)
        if self._finite and isinstance(made, float) and not math.isfinite(made):
            self.fail(f"a number of nats, not {made}", param, ctx)
        try:
            if isinstance(made, dict):
                check_threshold("--threshold", made)
        except InputError as error:
            self.fail(str(error).removeprefix("--threshold: "), param, ctx)
        return made


THRESHOLD = _Threshold()


def thresholds_option(text: str, *default: float) -> Callable[[_Command], _Command]:
    """Add --threshold, which may be given several times."""
    return click.option(
        "--threshold",
        "thresholds",
        multiple=True,
        type=_Threshold(finite=True),
        metavar="T",
        default=default,
        show_default=bool(default),
        help=f"{text} T is nats, or a rate of the index's calibration: false_alarm=0.01.",
    )


def resolve(given: Any, index: Index | None) -> float:
    """Return a threshold as one number of nats; a rate is that at as many atoms as a frame of the reference has.

    Parameters
    ----------
    given
        As `THRESHOLD` converts it.
    index
        What a rate or a force error is asked of; None where the reference is no index.

    Raises
    ------
    InputError
        A rate without an index, or elements with different thresholds. Also what `resolve_threshold` raises.
    """
    if not isinstance(given, dict):
        return float(given)
    text = ",".join(f"{key}={value:g}" for key, value in given.items())
    if index is None:
        raise InputError(
            f"--threshold {text} needs the calibration of an index: build one (quests-md index build) and give it with "
            "--index, or give a number of nats"
        )
    counts = typical_counts(index)
    values = set(resolve_threshold("--threshold", given, index, counts).values())
    if len(values) != 1:
        raise InputError(f"--threshold {text}: elements have different thresholds; here one number is for all of them")
    if launched_rank() == 0:
        atoms = ", ".join(f"{n} {symbol}" for symbol, n in counts.items())
        (nats,) = values
        click.echo(f"quests-md: --threshold {text} is {nats:.6g} nats, in a frame of {atoms} atoms", err=True)
    return values.pop()


def typical_counts(index: Index, elements: Sequence[str] | None = None) -> dict[str, int]:
    """Return how many atoms of each element a frame of the reference has; of those of `elements` that it holds."""
    if index.calibration is not None:
        found = index.calibration.typical
    else:
        found = dict.fromkeys(index.elements, 1)
    wanted = {symbol: n for symbol, n in found.items() if elements is None or symbol in elements}
    return wanted or found


def count_atoms(atoms: Sequence[str], elements: Sequence[str]) -> dict[str, int]:
    """Return the number of watched atoms by symbol, of --atoms. A number without a symbol is divided among all."""
    symbols = [s for s in dict.fromkeys(elements) if s != "NULL"] or ["X"]  # "X": own rows
    counts: dict[str, int] = {}
    for text in atoms:
        symbol, _, number = text.rpartition("=")
        if not number.isdigit() or int(number) < 1 or (symbol and symbol not in symbols):
            raise click.BadParameter(f"{text!r} is neither a number of atoms nor SYMBOL=N of {', '.join(symbols)}")
        counts.update({symbol: int(number)} if symbol else {s: -(-int(number) // len(symbols)) for s in symbols})
    return counts
