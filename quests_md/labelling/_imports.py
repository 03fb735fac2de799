"""Labels that were made elsewhere: found by the frame's id in the queue, and checked like those of an oracle."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import QueueError
from ._compute import find_problem
from ._entries import QUEUE_ID
from ._oracle_settings import Labels
from ._queue import Queue

if TYPE_CHECKING:
    import ase

__all__ = ["Imported", "import_labels"]

_NEAR = 1e-3  # Å: other programs write positions and cells with fewer digits, and move atoms by whole cells


@dataclass
class Imported:
    """What became of labels that were made elsewhere.

    Attributes
    ----------
    done
        Ids of the frames that got labels.
    there
        Ids of the frames that had labels already, or that a worker has now.
    refused
        Why a frame got none, in words, each with its number in the file.
    """

    done: list[int] = field(default_factory=list)
    there: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def import_labels(
    queue: Queue, frames: Iterable[ase.Atoms], *, max_force: float = 50.0, code: str = "", source: str = ""
) -> Imported:
    """Store labels that were made elsewhere.

    Parameters
    ----------
    queue
        The frames that wait, or have failed.
    frames
        Frames with energy, forces and, if there is one, stress. A frame is that of the queue which ``queue_id`` in its
        info names; it must have the same atoms, within 0.001 Å and whole cells. Without that key, it is the frame with
        the same elements, cell, periodicity and positions to the last digit.
    max_force
        Largest force on an atom (eV/Å) that is believed.
    code, source
        What computed them, and where they come from; for the record.

    Returns
    -------
    Imported
        What became of each. Labels that cannot be believed are refused, and their frames stay as they are.

    Raises
    ------
    QueueError
        The database cannot be used.
    """
    found = Imported()
    worker = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"
    for number, atoms in enumerate(frames):
        try:
            id = _find(queue, atoms)
            labels = _check(atoms, max_force)
        except ValueError as error:
            found.refused.append(f"frame {number}: {error}")
            continue
        claim = queue.claim_frame(id, worker)
        if claim is None:
            found.there.append(id)
            continue
        queue.done(claim, labels, {"code": code or "unknown", "settings": None, "imported": source})
        found.done.append(id)
    return found


def _find(queue: Queue, atoms: ase.Atoms) -> int:
    """Return the id of a frame in the queue; `ValueError` if it is not there."""
    given = atoms.info.get(QUEUE_ID)
    if given is None:
        id = queue.find(atoms)
        if id is None:
            raise ValueError(
                f"it has no {QUEUE_ID}, and no frame of {queue.name} has its atoms to the last digit: export the "
                "frames that wait (queue export --state waiting --with-id), and keep that key"
            )
        return id
    try:
        id = int(given)
        waiting = queue.atoms(id)
    except (QueueError, ValueError) as error:
        raise ValueError(f"{QUEUE_ID} = {given}: {error}") from error
    if (problem := _differ(atoms, waiting)) != "":
        raise ValueError(f"it is not frame {id} of {queue.name}, as its {QUEUE_ID} says: {problem}")
    return id


def _differ(atoms: ase.Atoms, other: ase.Atoms) -> str:
    """Return in words how two frames differ; "" if they do not."""
    if len(atoms) != len(other) or (atoms.numbers != other.numbers).any():
        return f"{atoms.get_chemical_formula('reduce')} and {other.get_chemical_formula('reduce')}"
    if (atoms.pbc != other.pbc).any() or np.abs(np.asarray(atoms.cell) - np.asarray(other.cell)).max() > _NEAR:
        return "the cells differ"
    from ase.geometry import find_mic

    moved = find_mic(atoms.positions - other.positions, other.cell, other.pbc)[1]
    worst = int(np.argmax(moved))
    return f"atom {worst} is {moved[worst]:.4f} Å away" if moved[worst] > _NEAR else ""


def _check(atoms: ase.Atoms, max_force: float) -> Labels:
    """Return the labels of a frame; `ValueError` if they cannot be true."""
    results: dict[str, Any] = atoms.calc.results
    stress = results.get("stress")
    answer = {"converged": None, "energy": results["energy"], "forces": results["forces"], "stress": stress}
    problem, reason = find_problem(answer, len(atoms), max_force)
    if problem:
        raise ValueError(reason)
    return Labels(results["energy"], results["forces"], stress)
