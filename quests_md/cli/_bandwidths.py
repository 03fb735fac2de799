"""The option --bandwidth of the verbs that judge datasets: numbers, or the word auto."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import numpy as np

from ..errors import InputError
from ..index import mean_volume
from ..information import DEFAULT_BANDWIDTH, bandwidth_from_volume
from ._dataset import Dataset

__all__ = ["bandwidth_option", "resolve_bandwidths", "volume_of"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _convert(value: Any) -> float | str:
    try:
        return "auto" if value == "auto" else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor auto") from None


def bandwidth_option(multiple: bool = False) -> Callable[[_Command], _Command]:
    """Add --bandwidth; several times if `multiple`."""
    return click.option(
        "--bandwidth",
        "bandwidths" if multiple else "bandwidth",
        type=_convert,
        metavar="H",
        multiple=multiple,
        help="h in 1/Å, or auto: by the volume per atom."
        + (" May be repeated." if multiple else "")
        + f"  [default: {DEFAULT_BANDWIDTH}; of an index, its own]",
    )


def resolve_bandwidths(data: Dataset, asked: Sequence[float | str]) -> tuple[float, ...]:
    """Return bandwidths as numbers, in ascending order; without any that of an index, or the default.

    Raises
    ------
    InputError
        "auto", and the volume rule does not hold for this dataset; or nothing, and it holds own descriptors.
    """
    if not asked and data.spec is None and data.bandwidth is None:
        raise InputError(
            f"{data.sources[0]['file']} holds own descriptors, whose unit is not known here: give --bandwidth H in it; "
            f"quests-md bandwidth {data.sources[0]['file']} helps to choose"
        )
    if not asked:
        return (DEFAULT_BANDWIDTH if data.bandwidth is None else data.bandwidth,)
    numbers = {float(h) if h != "auto" else bandwidth_from_volume(volume_of(data)) for h in asked}
    return tuple(sorted(numbers))


def volume_of(data: Dataset) -> float:
    """Return the mean volume per atom (Å³) of the frames that are bulk.

    Raises
    ------
    InputError
        The dataset is not one of frames, none of them is bulk, or QUESTS's rule does not hold for its descriptor.
    """
    if data.spec is None or not len(data.volumes):
        raise InputError(
            f"{data.sources[0]['file']} tells no volume per atom, which bandwidth=auto needs: give a number"
        )
    return mean_volume(data.volumes, np.diff(data.frame_offsets), data.spec)
