"""The process that calculates. It reads tasks as lines of JSON, and writes its answers as lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

import numpy as np

from ._oracle_settings import FOLDER, call_tables, fill_folder, load

__all__ = ["serve"]


def serve() -> None:
    """Answer tasks until there are no more.

    Calculators may print anything at any time: that goes to descriptor 2. They read from an empty file.
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
    """Answers tasks, and keeps the calculator from one task to the next if that saves time."""

    def __init__(self) -> None:
        self._home = os.getcwd()
        self._key = ""
        self._calculator: Any = None
        self._record: dict[str, Any] = {}
        self._atoms: Any = None

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return labels; or a problem, "setup" (the calculator cannot be made) or "failed", and its reason."""
        problem = "setup"
        try:
            self._prepare(task)
            if task["atoms"] is None:
                return {"record": self._record}
            problem = "failed"
            os.chdir(task["folder"])
            answer = _calculate(self._calculator, task) | {"record": self._record}
        # Whatever a calculator raises, SystemExit too, becomes the answer: this process goes on.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._calculator = None
            traceback.print_exc()
            text = " ".join(str(error).split())
            return {"problem": problem, "reason": f"{type(error).__name__}: {text}", "record": self._record}
        finally:
            os.chdir(self._home)
        program = _find_version(self._calculator)
        if program:
            answer["record"] = self._record | {"program_version": program}
        if _writes_files(self._calculator) or answer["converged"] is False:
            self._calculator = None
        return answer

    def _prepare(self, task: dict[str, Any]) -> None:
        """Make the calculator, or keep the one there is: GPAW and others then start from the frame before."""
        text = json.dumps([task["calculator"], task["keywords"]])
        again = task["atoms"] == self._atoms  # a calculator that was kept would answer from memory, and not calculate
        self._atoms = task["atoms"]
        if self._calculator is None or text != self._key or FOLDER in text or again:
            self._calculator = None  # the old one ends first: there may be no room for two
            make = load(task["calculator"])
            self._record = {"calculator": task["calculator"], **_find_code(task["calculator"])}
            self._calculator = make(**call_tables(fill_folder(task["keywords"], task["folder"])))
            self._key = text


def _find_code(path: str) -> dict[str, str]:
    """Return the package that a calculator comes from, and its version."""
    package = path.partition(":")[0].partition(".")[0]
    name = packages_distributions().get(package, [package])[0]
    try:
        return {"code": name, "version": version(name)}
    except PackageNotFoundError:  # a module of the user's own
        return {"code": package, "version": str(getattr(import_module(package), "__version__", "unknown"))}


def _writes_files(calculator: Any) -> bool:
    """Return whether a calculator drives a program by files. It is not kept: it might read old files."""
    from ase.calculators.calculator import FileIOCalculator
    from ase.calculators.genericfileio import GenericFileIOCalculator

    return isinstance(calculator, (FileIOCalculator, GenericFileIOCalculator)) or hasattr(calculator, "make_command")


def _calculate(calculator: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Return energy (eV), forces (eV/Å), stress (eV/Å³, Voigt's order; or None), and whether it has converged."""
    from ase import Atoms
    from ase.calculators.calculator import PropertyNotImplementedError, all_changes

    given = task["atoms"]
    atoms = Atoms(**{key: np.array(value) for key, value in given.items()}, calculator=calculator)
    wanted = ["energy", "forces"]
    if task["stress"] and atoms.pbc.all() and "stress" in getattr(calculator, "implemented_properties", ()):
        wanted.append("stress")
    if _writes_files(calculator):
        calculator.calculate(atoms, wanted, all_changes)  # all at once: else the program would be started three times
    forces = np.asarray(atoms.get_forces(), dtype=float)
    stress: Any = None
    if "stress" in wanted:
        try:
            stress = np.asarray(atoms.get_stress(voigt=True), dtype=float).tolist()
        except PropertyNotImplementedError:  # the class has it, but not with these keywords
            stress = None
    return {
        "energy": float(atoms.get_potential_energy()),
        "forces": forces.tolist(),
        "stress": stress,
        "converged": _has_converged(calculator),
    }


def _has_converged(calculator: Any) -> bool | None:
    """Return whether a calculator says that it has converged; None if it says nothing."""
    places = (
        getattr(calculator, "results", {}).get("converged"),
        getattr(calculator, "converged", None),
        getattr(getattr(calculator, "scf", None), "converged", None),
    )
    said = [bool(place) for place in places if isinstance(place, (bool, np.bool_))]
    return all(said) if said else None


def _find_version(calculator: Any) -> str:
    """Return the version of the program that a calculator drives; empty if the calculator does not know it."""
    version = getattr(calculator, "version", None)
    if isinstance(version, (str, int, float)):
        return str(version)
    ask = getattr(getattr(calculator, "profile", None), "version", None)
    if callable(ask):
        try:
            return str(ask())
        except Exception:  # noqa: BLE001 - it starts the program, which may fail; the labels do not depend on it
            return ""
    return ""
