"""One calculation: in a process that may die, within its time, and believed only if what comes out is sane."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Halted, OracleError
from ..versions import versions
from ._labels import Labels
from ._oracle import Oracle
from ._process import Child, Died, TimedOut, child_of_this_thread

if TYPE_CHECKING:
    import ase

__all__ = ["Outcome", "await_outcome", "compute", "outcome_of", "run_task", "task_of"]

# What of a frame a calculation sees, as it is called in arrays and by ase.Atoms. No constraints: they make forces zero.
_COLUMNS = {
    "numbers": "numbers", "positions": "positions", "tags": "tags", "initial_charges": "charges",
    "initial_magmoms": "magmoms",
}  # fmt: skip
_TICK = 0.25  # seconds between looks at what may stop a wait
_WORDS = 600  # characters of what a process has printed that go into a reason


@dataclass(frozen=True)
class Outcome:
    """What became of one calculation.

    Attributes
    ----------
    labels
        None, if there is a problem.
    problem
        "" or "failed" (the calculator raised an error, or has not converged), "died" (its process ended), "timeout"
        (killed after `wall_time`), "insane" (labels that cannot be true).
    reason
        The problem in words, with the folder that was kept.
    seconds
        How long it took.
    record
        The calculator, its code and version, the settings, seconds, host and versions.
    """

    labels: Labels | None
    problem: str
    reason: str
    seconds: float
    record: dict[str, Any]


def compute(oracle: Oracle, atoms: ase.Atoms, *, folder: str | Path | None = None) -> Outcome:
    """Calculate the labels of a frame in this thread's child process, which is kept for the next frame.

    Parameters
    ----------
    oracle
        What calculates.
    atoms
        The frame. Its constraints play no part.
    folder
        Where it is calculated, an existing folder, which is kept. Default: a scratch folder of its own.

    Returns
    -------
    Outcome
        The labels, or why there are none.

    Raises
    ------
    OracleError
        There is no such calculator, or it cannot be made with these keywords.
    """
    return outcome_of(run_task(task_of(oracle, atoms, folder)))


def task_of(oracle: Oracle, atoms: ase.Atoms | None, folder: str | Path | None = None) -> str:
    """Return a calculation as text, which every executor can carry; without atoms, the calculator is only made."""
    given: dict[str, Any] | None = None
    if atoms is not None:
        cell, pbc = np.asarray(atoms.cell), np.asarray(atoms.pbc)
        columns = {name: atoms.arrays[key] for key, name in _COLUMNS.items() if key in atoms.arrays}
        given = {name: value.tolist() for name, value in {**columns, "cell": cell, "pbc": pbc}.items()}
    where = None if folder is None else os.path.abspath(folder)
    return json.dumps({"oracle": oracle.model_dump(), "atoms": given, "folder": where})


def outcome_of(answer: str) -> Outcome:
    """Return what the text from `run_task` says.

    Raises
    ------
    OracleError
        The calculator cannot be made.
    """
    said = json.loads(answer)
    if said["problem"] == "setup":
        raise OracleError(said["reason"])
    labels = None
    if not said["problem"] and said["labels"] is not None:
        forces, stress = np.array(said["labels"]["forces"], dtype=float), said["labels"]["stress"]
        labels = Labels(said["labels"]["energy"], forces, None if stress is None else np.array(stress, dtype=float))
    return Outcome(labels, said["problem"], said["reason"], said["seconds"], said["record"])


def await_outcome(future: Future[str], stop: Callable[[], bool] | None) -> Outcome:
    """Return what a calculation that was handed to an executor comes to; `Halted`, if `stop` says so before."""
    while not future.done():
        if stop is not None and stop():
            raise Halted("told to stop before any frame was claimed")
        wait([future], timeout=_TICK)
    try:
        answer = future.result()
    except OracleError:
        raise
    except Exception as error:
        raise OracleError(f"the executor cannot calculate: {type(error).__name__}: {error}") from error
    return outcome_of(answer)


def run_task(text: str) -> str:
    """Do a calculation of `task_of`, wherever an executor has brought it; return its outcome as text."""
    task = json.loads(text)
    oracle = Oracle(**task["oracle"])
    folder = Path(task["folder"] or _scratch(oracle))
    child = child_of_this_thread(oracle.environment)
    started = time.perf_counter()
    answer = _ask(child, oracle, task["atoms"], folder)
    seconds = time.perf_counter() - started
    if not answer["problem"] and task["atoms"] is not None:
        answer["problem"], answer["reason"] = _doubt(oracle, answer, len(task["atoms"]["numbers"]))
    said = child.said()
    if answer["problem"]:
        answer["reason"] = _reason(oracle, answer, said)
    if task["folder"] is None:
        answer["reason"] += _clear(folder, said, keep=bool(answer["problem"]) or oracle.keep)
    record = {
        "settings": oracle.settings,
        "seconds": round(seconds, 3),
        "host": platform.node(),
        "versions": versions(),
        **answer["record"],
    }
    labels = {key: answer[key] for key in ("energy", "forces", "stress")} if "forces" in answer else None
    fields = {"problem": answer["problem"], "reason": answer["reason"], "labels": labels}
    return json.dumps({**fields, "seconds": seconds, "record": record})


def _scratch(oracle: Oracle) -> str:
    try:
        return os.path.abspath(tempfile.mkdtemp(prefix="quests-md-", dir=oracle.scratch))
    except OSError as error:
        raise OracleError(f"scratch: no folder can be made in {oracle.scratch}: {error.strerror}") from error


def _ask(child: Child, oracle: Oracle, atoms: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    task = {"folder": str(folder), "stress": oracle.stress, "atoms": atoms}
    nothing = {"problem": "", "reason": "", "record": {}}
    try:
        return nothing | child.ask({**oracle.settings, **task}, oracle.wall_time)
    except TimedOut:
        return nothing | {"problem": "timeout", "reason": f"killed after {oracle.wall_time:g} s, its wall_time"}
    except Died as error:
        return nothing | {"problem": "died", "reason": str(error)}


def _doubt(oracle: Oracle, answer: Mapping[str, Any], n_atoms: int) -> tuple[str, str]:
    """Return the problem with labels and what it is; twice "", if they can be believed."""
    if answer["converged"] is False:
        return "failed", "the calculator says that it has not converged"
    forces = np.array(answer["forces"], dtype=float)
    if forces.shape != (n_atoms, 3):
        return "insane", f"forces of shape {forces.shape} for {n_atoms} atoms"
    if not math.isfinite(answer["energy"]):
        return "insane", f"the energy is {answer['energy']} eV"
    lengths = np.linalg.norm(forces, axis=1)
    if not np.isfinite(lengths).all():
        return "insane", f"the force on atom {int(np.flatnonzero(~np.isfinite(lengths))[0])} is not finite"
    stress = answer["stress"]
    if stress is not None and not (np.shape(stress) == (6,) and np.isfinite(stress).all()):
        return "insane", "the stress is not six finite numbers"
    worst = int(lengths.argmax())
    if lengths[worst] > oracle.max_force:
        return (
            "insane",
            f"the force on atom {worst} is {lengths[worst]:.4g} eV/Å, above max_force = {oracle.max_force:g}",
        )
    return "", ""


def _reason(oracle: Oracle, answer: Mapping[str, Any], said: bytes) -> str:
    """Return why there are no labels; of a process that ended, or could not start, with the end of what it has said."""
    reason = str(answer["reason"])
    if answer["problem"] == "setup":
        return f"{oracle.calculator} cannot be made: {reason}"
    words = said.decode(errors="replace").strip()
    if answer["problem"] == "died" and words:
        reason += f"; it said: {words[-_WORDS:]}"
    return reason


def _clear(folder: Path, said: bytes, keep: bool) -> str:
    """Remove a scratch folder, or keep it where there is anything in it, with what was printed; return where it is."""
    with contextlib.suppress(OSError):  # the calculator, or who tidies up, has removed it; or the disk is full
        if keep and said:
            (folder / "output.txt").write_bytes(said)
        if keep and any(folder.iterdir()):
            return f"; kept: {folder}"
    shutil.rmtree(folder, ignore_errors=True)
    return ""
