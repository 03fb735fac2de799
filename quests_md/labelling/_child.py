"""The process that calculates. It reads tasks as lines of JSON, and writes its answers as lines of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from ..elements import SYMBOLS
from ._convergence import Code, drives_program, find_bad_line, find_code, find_parts, find_unconverged, read_steps
from ._mesh import choose_mesh, find_fixed_mesh, measure_spacing, mesh_keywords
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


class _Refused(Exception):
    """The frame, or what was calculated, cannot give labels; the message says why."""


class _Desk:
    """Answers tasks, and keeps the calculator from one task to the next if that saves time."""

    def __init__(self) -> None:
        self._home = os.getcwd()
        self._key = ""
        self._calculator: Any = None
        self._code: dict[str, Any] = {}
        self._record: dict[str, Any] = {}
        self._atoms: Any = None

    def answer(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return labels; or a problem, "setup" (the calculator cannot be made) or "failed", and its reason.

        Without atoms the calculator is made, or asked for the version of its program.
        """
        if task.get("ask_version"):
            return {"record": {"program_version": _ask_version(self._calculator)}}
        problem = "setup"
        try:
            self._prepare(task)
            if task["atoms"] is None:
                return {"record": self._record, "untold": _is_untold(self._calculator)}
            problem = "failed"
            os.chdir(task["folder"])
            _check_pseudopotentials(self._calculator, task)
            answer = _calculate(self._calculator, task)
        # Whatever a calculator raises, SystemExit too, becomes the answer: this process goes on.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            traceback.print_exc()
            answer = {"problem": problem, "reason": _describe(error), "record": self._record}
            if problem == "failed":
                answer["unconverged"] = _find_in_parts(self._calculator, task["folder"], find_bad_line)
            self._calculator = None
            return answer
        finally:
            os.chdir(self._home)
        answer["record"] = self._record | answer["record"] | _find_version(self._calculator)
        if any(map(drives_program, find_parts(self._calculator))) or answer["converged"] is False:
            self._calculator = None  # one that drives a program might read old files
        return answer

    def _prepare(self, task: dict[str, Any]) -> None:
        """Make the calculator, or keep the one there is: GPAW and others then start from the frame before."""
        make = load(task["calculator"])
        keywords, mesh = _complete_keywords(make, task)
        text = json.dumps([task["calculator"], keywords])
        again = task["atoms"] == self._atoms  # a calculator that was kept would answer from memory, and not calculate
        self._atoms = task["atoms"]
        code = find_code(make)
        # Its shell starts when it is made, and writes into the folder where it was started.
        starts = code is not None and code.name == "CP2K"
        if self._calculator is None or text != self._key or FOLDER in text or again or starts:
            self._calculator = None  # the old one ends first: there may be no room for two
            if starts:
                os.chdir(task["folder"])
            self._code = {"calculator": task["calculator"], **_find_code(task["calculator"])}
            self._calculator = make(**call_tables(fill_folder(keywords, task["folder"])))
            self._key = text
            if task["energy"] == "extrapolated":
                _check_extrapolated(self._calculator)
        self._record = self._code | mesh


def _describe(error: BaseException) -> str:
    """Return what was raised in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, _Refused) else f"{type(error).__name__}: {text}"


def _complete_keywords(make: Any, task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keywords with the mesh of this frame, and with forces asked for; and the record of the mesh."""
    keywords, atoms = dict(task["keywords"]), task["atoms"]
    _check_single_point(keywords)
    cell, pbc = (np.eye(3), [True] * 3) if atoms is None else (atoms["cell"], atoms["pbc"])
    mesh = find_fixed_mesh(keywords)
    if task["kspacing"] is not None:
        mesh = choose_mesh(cell, pbc, task["kspacing"])
        keywords |= mesh_keywords(make, mesh, bool(np.any(pbc)), keywords)
    # ASE asks pw.x for no forces, and then the calculation was in vain.
    asked = {"tprnfor": True, "tstress": bool(task["stress"] and np.all(pbc))}
    keywords = _ask_espresso({"call": task["calculator"], **keywords}, asked)
    del keywords["call"]
    spacing = None if mesh is None else measure_spacing(cell, pbc, mesh)
    return keywords, {} if spacing is None else {"mesh": mesh, "mesh_spacing": round(spacing, 4)}


def _ask_espresso(value: Any, asked: dict[str, Any]) -> Any:
    """Return keywords in which each call that makes an Espresso asks for forces, and for what else is asked."""
    if isinstance(value, list):
        return [_ask_espresso(item, asked) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _ask_espresso(item, asked) for key, item in value.items()}
    make = load(str(found["call"])) if "call" in found else None
    code = find_code(make)
    if code is not None and code.name == "Quantum ESPRESSO" and hasattr(make, "calculate"):  # and not its profile
        found |= {key: item for key, item in asked.items() if not _has_key(found, key)}
    return found


def _has_key(table: Any, key: str) -> bool:
    """Return whether a table, or one in it, has a key; Fortran does not tell letters from capitals."""
    if not isinstance(table, dict):
        return False
    return any(str(name).lower() == key or _has_key(value, key) for name, value in table.items())


# Keywords with which a program moves atoms, so that its forces are not those of the frame; and values with which it
# does not.
_MOVING = {
    "calculation": ("scf",), "nsw": (0,), "ionmov": (0,), "relax_geometry": ("none",), "md_run": (), "md.steps": (0,),
}  # fmt: skip


def _check_single_point(table: Any) -> None:
    """Raise `ValueError` if a keyword lets the program move atoms."""
    for key, value in table.items() if isinstance(table, dict) else ():
        allowed = _MOVING.get(str(key).lower())
        if allowed is not None and (value.lower() if isinstance(value, str) else value) not in allowed:
            raise ValueError(f"{key} = {value!r}: labels are those of the frame as it is; leave {key} out")
        _check_single_point(value)


def _check_extrapolated(calculator: Any) -> None:
    """Raise `ValueError` if ASE reads the free energy alone from the output of this code."""
    code = find_code(calculator)
    if code is not None and code.name in ("Quantum ESPRESSO", "ABINIT", "CP2K", "FHI-aims"):
        raise ValueError(f'energy: ASE reads the free energy alone from {code.name}: leave it at "free"')


def _is_untold(calculator: Any) -> bool:
    """Return whether nobody knows how the program that a calculator drives says that it has not converged."""
    for part in find_parts(calculator):
        drives = drives_program(part) or any(hasattr(part, name) for name in ("command", "launch_client"))
        if drives and find_code(part) is None and type(part).__name__ not in _WITHOUT_CYCLE:
            return True
    return False


_WITHOUT_CYCLE = ("DFTD3", "PureDFTD3")  # programs that have no self-consistency


def _find_in_parts(calculator: Any, folder: str, find: Callable[[Code, list[Path]], str]) -> str:
    """Return what is found in the output of the codes that a calculator drives."""
    for part in find_parts(calculator):
        code = find_code(part)
        if code is not None and (found := find(code, _find_folders(part, folder))):
            return found
    return ""


def _check_pseudopotentials(calculator: Any, task: dict[str, Any]) -> None:
    """Raise `_Refused` if an element of the frame has no pseudopotential, before the program is started."""
    given = task["keywords"].get("pseudopotentials")
    if not isinstance(given, dict):
        return
    folder: str | None = getattr(getattr(calculator, "profile", None), "pseudo_dir", None)
    for number in sorted(set(task["atoms"]["numbers"])):
        symbol = SYMBOLS[number]
        if symbol not in given:
            raise _Refused(f"no pseudopotential for {symbol}: pseudopotentials names {', '.join(given) or 'none'}")
        if folder is None or _has_key(task["keywords"].get("input_data"), "pseudo_dir"):
            continue
        if not os.path.isfile(os.path.join(folder, given[symbol])):
            raise _Refused(f"no pseudopotential for {symbol}: there is no {given[symbol]} in {folder}")


def _find_code(path: str) -> dict[str, str]:
    """Return the package that a calculator comes from, and its version."""
    package = path.partition(":")[0].partition(".")[0]
    name = packages_distributions().get(package, [package])[0]
    try:
        return {"code": name, "version": version(name)}
    except PackageNotFoundError:  # a module of the user's own
        return {"code": package, "version": str(getattr(import_module(package), "__version__", "unknown"))}


def _calculate(calculator: Any, task: dict[str, Any]) -> dict[str, Any]:
    """Return energy (eV), forces (eV/Å), stress (eV/Å³, Voigt's order; or None), and whether it has converged."""
    from ase import Atoms
    from ase.calculators.calculator import PropertyNotImplementedError, all_changes

    given = dict(task["atoms"])
    if task["moments"] is not None and "magmoms" not in given:
        given["magmoms"] = [task["moments"].get(SYMBOLS[number], 0.0) for number in given["numbers"]]
    atoms = Atoms(**{key: np.array(value) for key, value in given.items()}, calculator=calculator)
    wanted = ["energy", "forces"]
    if task["stress"] and atoms.pbc.all() and "stress" in getattr(calculator, "implemented_properties", ()):
        wanted.append("stress")
    read = _ask_for
    if drives_program(calculator):
        calculator.calculate(atoms, wanted, all_changes)  # all at once: else the program would be started three times
        read = _read_results
    forces = np.asarray(read(calculator, atoms, "forces"), dtype=float)
    stress: Any = None
    if "stress" in wanted:
        try:
            stress = np.asarray(read(calculator, atoms, "stress"), dtype=float)
        except PropertyNotImplementedError:  # the class has it, but not with these keywords
            stress = None
    results = getattr(calculator, "results", None) or {}
    energy = "free_energy" if task["energy"] == "free" and results.get("free_energy") is not None else "energy"
    steps = read_steps(find_code(calculator), _find_folders(calculator, task["folder"]))
    value = float(read(calculator, atoms, energy))
    unconverged = _find_in_parts(calculator, task["folder"], find_unconverged)
    return {
        "energy": value,
        "forces": forces.tolist(),
        "stress": None if stress is None else _to_voigt(stress).tolist(),
        "converged": False if unconverged else _has_converged(calculator),
        "unconverged": unconverged,
        "record": {"energy": energy, "memory_MB": _measure_memory()} | ({} if steps is None else {"scf_steps": steps}),
    }


def _find_folders(calculator: Any, folder: str) -> list[Path]:
    """Return where a calculator may have left its output."""
    own = getattr(calculator, "directory", None)
    return [Path(folder, own), Path(folder)] if isinstance(own, (str, os.PathLike)) else [Path(folder)]


def _ask_for(calculator: Any, atoms: Any, name: str) -> Any:
    """Return a result of a calculator, which it may calculate for that."""
    if name == "forces":
        return atoms.get_forces()
    if name == "stress":
        return atoms.get_stress(voigt=True)
    return calculator.results[name] if name == "free_energy" else atoms.get_potential_energy()


def _read_results(calculator: Any, atoms: Any, name: str) -> Any:
    """Return what a program has calculated. `get_forces` and the like might start it once more."""
    from ase.calculators.calculator import PropertyNotImplementedError

    value = calculator.results.get(name)
    if value is not None:
        return value
    if name == "stress":
        raise PropertyNotImplementedError
    found = ", ".join(sorted(key for key in calculator.results if key in ("energy", "free_energy", "forces", "stress")))
    raise _Refused(
        f"the calculation gave no {name}, but {found or 'no labels'}: does a keyword ask the program for {name}?"
    )


def _to_voigt(stress: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return stress if stress.shape != (3, 3) else stress.flat[[0, 4, 8, 5, 2, 1]]


def _measure_memory() -> int:
    """Return the most memory, in MB, that this process or a single one of its programs has had."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return round(max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024)


def _has_converged(calculator: Any) -> bool | None:
    """Return whether a calculator, and each that it is made of, says that it has converged; None if none says it."""
    places = []
    for part in find_parts(calculator):
        places += [
            (getattr(part, "results", None) or {}).get("converged"),
            getattr(part, "converged", None),
            getattr(getattr(part, "scf", None), "converged", None),
        ]
    said = [bool(place) for place in places if isinstance(place, (bool, np.bool_))]
    return all(said) if said else None


def _find_version(calculator: Any) -> dict[str, str]:
    """Return the version of the program that a calculator drives, if the calculator knows it without asking."""
    results = getattr(calculator, "results", None) or {}
    for found in (getattr(calculator, "version", None), results.get("version")):
        if isinstance(found, (str, int, float)):
            return {"program_version": str(found)}
    return {}


def _ask_version(calculator: Any) -> str:
    """Start the program to ask for its version; "" if the calculator knows no way to ask."""
    ask = getattr(getattr(calculator, "profile", None), "version", None)
    if not callable(ask):
        return ""
    try:
        return str(ask())
    except Exception:  # noqa: BLE001 - it starts the program, which may fail; the labels do not depend on it
        return "unknown"
