"""What a queue hands out and takes back: claims, labels, and what is known of a frame in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["STATES", "Claim", "Entry", "Labels"]

STATES = ("waiting", "running", "done", "failed", "quarantined")


@dataclass(frozen=True, eq=False)
class Labels:
    """What an oracle says of a frame, in ASE's units and signs.

    Parameters
    ----------
    energy
        In eV.
    forces
        (n, 3), in eV/Å.
    stress
        (6,), in eV/Å³, in Voigt's order; None where there is none.

    Raises
    ------
    InputError
        A value is not finite, or an array has another shape.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        forces = np.asarray(self.forces, dtype=np.float64)
        if forces.ndim != 2 or forces.shape[1] != 3:
            raise InputError(f"the forces of a label must have shape (n, 3), not {forces.shape}")
        stress = None if self.stress is None else np.asarray(self.stress, dtype=np.float64)
        if stress is not None and stress.shape != (6,):
            raise InputError(f"the stress of a label must have shape (6,), not {stress.shape}")
        values = {"energy": np.asarray(self.energy, dtype=np.float64), "forces": forces, "stress": stress}
        for name, value in values.items():
            if value is not None and not np.isfinite(value).all():
                raise InputError(f"the {name} of a label must be finite")
        object.__setattr__(self, "energy", float(self.energy))
        object.__setattr__(self, "forces", forces)
        object.__setattr__(self, "stress", stress)


@dataclass(frozen=True)
class Claim:
    """The right of one worker to label one frame, until it expires.

    Parameters
    ----------
    id
        Of the frame in the queue.
    worker
        Who has it.
    token
        Tells this claim from any other one of the same frame.
    tries
        How often the frame was claimed, this time included.
    atoms
        The frame, without a calculator.
    """

    id: int
    worker: str
    token: str
    tries: int
    atoms: Any


@dataclass(frozen=True)
class Entry:
    """What is known of a frame in a queue.

    Parameters
    ----------
    id
        Its number in the queue.
    state
        One of `STATES`.
    tries
        How often it was claimed since it was added or told to be tried again.
    worker
        Who has it, or had it last.
    reason
        Why the last try came to nothing; empty once it is done.
    added, changed
        When it was added, and when its state changed last: seconds since 1970.
    seconds
        What the label took; None while there is none.
    formula, natoms
        What it is made of.
    digest
        Of elements, cell, periodicity and positions: the same for the same frame.
    source
        Where it came from: what `add` was told, and what a saved frame says of itself (run, step, dH_max, ...).
    history
        What came to nothing, and what was done about it, oldest first: `at` (seconds since 1970), `what`, `worker`,
        `reason`.
    record
        What the oracle said of itself when the frame was done.
    """

    id: int
    state: str
    tries: int
    worker: str
    reason: str
    added: float
    changed: float
    seconds: float | None
    formula: str
    natoms: int
    digest: str
    source: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    record: dict[str, Any]
