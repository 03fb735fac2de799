"""Whether an oracle still gives the labels that it gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError, OracleError
from ._compute import await_outcome, run_task, task_of
from ._oracle import Oracle

if TYPE_CHECKING:
    import ase

__all__ = ["check_labels"]


def check_labels(
    oracle: Oracle,
    executor: Executor,
    frames: Sequence[ase.Atoms],
    most: int = 3,
    *,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Label frames again that have labels, and compare.

    Parameters
    ----------
    oracle
        Its tolerances count: `energy_tolerance` per atom, `force_tolerance` for each component.
    executor
        Where it is calculated.
    frames
        Frames with energy and forces; of more than `most`, the first, the last and what lies evenly between.
    most
        How many are labelled again.
    stop
        As of `label`.

    Returns
    -------
    int
        How many were.

    Raises
    ------
    OracleError
        A label is another one now, or there is none; the message has both, and the tolerance.
    InputError
        A frame has no energy or no forces.
    Halted
        `stop` said so.
    """
    chosen = sorted({round(i) for i in np.linspace(0, len(frames) - 1, min(most, len(frames)))})
    for i in chosen:
        if frames[i].calc is None or not {"energy", "forces"} <= set(frames[i].calc.results):
            raise InputError(f"frame {i} of those to check the oracle with has no energy and forces")
    answers = {i: executor.submit(run_task, task_of(oracle, frames[i])) for i in chosen}
    for i, answer in answers.items():
        outcome = await_outcome(answer, stop)
        if outcome.labels is None:
            raise OracleError(f"frame {i} has labels, but gets none now: {outcome.problem}: {outcome.reason}")
        stored = frames[i].calc.results
        was, now = stored["energy"] / len(frames[i]), outcome.labels.energy / len(frames[i])
        _compare(i, "energy per atom", "eV", was, now, oracle.energy_tolerance)
        old, new = np.asarray(stored["forces"], dtype=float), outcome.labels.forces
        atom, axis = divmod(int(np.abs(new - old).argmax()), 3)
        what = f"component {'xyz'[axis]} of the force on atom {atom}"
        _compare(i, what, "eV/Å", float(old[atom, axis]), float(new[atom, axis]), oracle.force_tolerance)
    return len(chosen)


def _compare(frame: int, what: str, unit: str, stored: float, new: float, tolerance: float) -> None:
    if not abs(new - stored) <= tolerance:  # nan differs, too
        raise OracleError(
            f"the oracle no longer gives the labels that it gave: frame {frame}, {what}: stored {stored:.6f}, "
            f"new {new:.6f} {unit}, tolerance {tolerance:g}. Is it the same code, version and settings?"
        )
