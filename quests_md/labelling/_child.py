"""The process that calculates: tasks come as lines of JSON, answers go back as lines of JSON on a way of their own."""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import numpy as np

from ._oracle import FOLDER, built, filled, load

__all__ = ["serve"]


def serve() -> None:
    """Answer tasks until there are no more.

    What a calculator prints goes to descriptor 2, for it may print anything at any time; it reads from nowhere.
    """
    tasks, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    desk = _Desk()
    for line in tasks:
        answer = desk.answer(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Desk:
    """Keeps the calculator from one task to the next, where that is of use."""

    def __init__(self) -> None:
        self._home = os.getcwd()
        self._key = ""
        self._calculator: Any = None
        self._record: dict[str, Any] = {}
        self._atoms: Any = None

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return labels, or a problem with its reason: "setup" (there is no calculator) or "failed"."""
        problem = "setup"
        try:
            self._prepare(task)
            if task["atoms"] is None:
                return {"record": self._record}
            problem = "failed"
            os.chdir(task["folder"])
            answer = _calculate(self._calculator, task) | {"record": self._record}
        # Whatever a calculator raises is its answer, SystemExit too: this process goes on.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._calculator = None
            traceback.print_exc()
            text = " ".join(str(error).split())
            return {"problem": problem, "reason": f"{type(error).__name__}: {text}", "record": self._record}
        finally:
            os.chdir(self._home)
        program = _program_version(self._calculator)
        if program:
            answer["record"] = self._record | {"program_version": program}
        if _writes_files(self._calculator) or answer["converged"] is False:
            self._calculator = None
        return answer

    def _prepare(self, task: dict[str, Any]) -> None:
        """Make the calculator, unless it is there: GPAW and others start from what they have of the frame before."""
        text = json.dumps([task["calculator"], task["keywords"]])
        again = task["atoms"] == self._atoms  # it would answer from memory, where somebody wants to know
        self._atoms = task["atoms"]
        if self._calculator is None or text != self._key or FOLDER in text or again:
            self._calculator = None  # the old one ends first: there may be place for one only
            make = load(task["calculator"])
            self._record = {"calculator": task["calculator"], **_code(task["calculator"])}
            self._calculator = make(**built(filled(task["keywords"], task["folder"])))
            self._key = text


def _code(path: str) -> dict[str, str]:
    """Return the distribution that a calculator comes from, and its version."""
    package = path.partition(":")[0].partition(".")[0]
    name = packages_distributions().get(package, [package])[0]
    try:
        return {"code": name, "version": version(name)}
    except PackageNotFoundError:  # a module of the user's own
        return {"code": package, "version": str(getattr(import_module(package), "__version__", "unknown"))}


def _writes_files(calculator: Any) -> bool:
    """Tell whether a calculator drives a program by files: it keeps nothing of use, and may read old ones."""
    from ase.calculators.calculator import FileIOCalculator
    from ase.calculators.genericfileio import GenericFileIOCalculator

    return isinstance(calculator, (FileIOCalculator, GenericFileIOCalculator)) or hasattr(calculator, "make_command")


def _calculate(calculator: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Return energy (eV), forces (eV/Å), stress (eV/Å³, Voigt order; or None) and what is said of convergence."""
    from ase import Atoms
    from ase.calculators.calculator import PropertyNotImplementedError, all_changes

    given = task["atoms"]
    atoms = Atoms(**{key: np.array(value) for key, value in given.items()}, calculator=calculator)
    wanted = ["energy", "forces"]
    if task["stress"] and atoms.pbc.all() and "stress" in getattr(calculator, "implemented_properties", ()):
        wanted.append("stress")
    if _writes_files(calculator):
        calculator.calculate(atoms, wanted, all_changes)  # all at once: one by one would start the program three times
    forces = np.asarray(atoms.get_forces(), dtype=float)
    stress: Any = None
    if "stress" in wanted:
        try:
            stress = np.asarray(atoms.get_stress(voigt=True), dtype=float).tolist()
        except PropertyNotImplementedError:  # promised by the class, but not for these keywords
            stress = None
    return {
        "energy": float(atoms.get_potential_energy()),
        "forces": forces.tolist(),
        "stress": stress,
        "converged": _converged(calculator),
    }


def _converged(calculator: Any) -> bool | None:
    """Return what a calculator says of its convergence where it says so without raising; None: nothing."""
    places = (
        getattr(calculator, "results", {}).get("converged"),
        getattr(calculator, "converged", None),
        getattr(getattr(calculator, "scf", None), "converged", None),
    )
    said = [bool(place) for place in places if isinstance(place, (bool, np.bool_))]
    return all(said) if said else None


def _program_version(calculator: Any) -> str:
    """Return the version of the program behind a calculator, if it knows it after a calculation."""
    version = getattr(calculator, "version", None)
    if isinstance(version, (str, int, float)):
        return str(version)
    ask = getattr(getattr(calculator, "profile", None), "version", None)
    if callable(ask):
        try:
            return str(ask())
        except Exception:  # noqa: BLE001 - it starts the program once more, and labels do not depend on what it says
            return ""
    return ""
