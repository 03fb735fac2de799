"""What a run that has not converged looks like, code by code: the one table, which the manual shows, too.

ASE tells it of some codes and not of others, and some codes end well without it. So the output of each calculation is
read here. A code that ends with an error, or whose calculator raises, needs no line; it is in the table to say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CODES",
    "Code",
    "drives_program",
    "find_bad_line",
    "find_code",
    "find_parts",
    "find_unconverged",
    "format_codes",
    "read_steps",
]

_ROUNDED = 1.06  # the threshold is printed with two digits
_MOST = 1 << 26  # bytes of an output that are read, from its end


def _compare_accuracy(text: str) -> str:
    """Compare the last accuracy that pw.x estimates with its threshold.

    With ``scf_must_converge = .false.`` it writes "convergence has been achieved" although it has not.
    """
    limits = re.findall(r"scf convergence threshold *= *(\S+)", text)
    found = re.findall(r"estimated scf accuracy *< *(\S+) Ry", text)
    if limits and found and float(found[-1]) > _ROUNDED * float(limits[-1]):
        return f"the last estimated scf accuracy, {found[-1]} Ry, is above the threshold, {limits[-1]} Ry"
    return ""


@dataclass(frozen=True)
class Code:
    """How a code says that it has not converged.

    Parameters
    ----------
    name
        Of the code.
    module
        Where its ASE calculator is.
    files
        Patterns of the files that say it. None if the calculator raises an error by itself.
    bad
        A regular expression that only the output of an unconverged run matches.
    good
        A regular expression that each output of a converged run matches.
    compare
        A function of the output that says what is wrong in it, or "".
    steps
        A regular expression that matches once for each step of the self-consistency; with a group, the group of the
        last match is how many there were.
    told
        What says it, for people.
    source
        Where that is known from.
    tried
        How it was tried: "in every test run", "by hand" with a version, or "not".
    """

    name: str
    module: str
    files: tuple[str, ...]
    told: str
    source: str
    tried: str
    bad: str = ""
    good: str = ""
    compare: Callable[[str], str] | None = None
    steps: str = ""


CODES = (
    Code(
        "Quantum ESPRESSO", "ase.calculators.espresso", ("espresso.pwo",),
        "`convergence NOT achieved`; or the last `estimated scf accuracy` is above the `scf convergence threshold`, as "
        "with `scf_must_converge = false`",
        "output of 6.7; `PW/src/electrons.f90`", "in every test run, 6.7",
        bad="convergence NOT achieved", compare=_compare_accuracy,
        steps=r"convergence has been achieved in +(\d+) iterations",
    ),
    Code(
        "ABINIT", "ase.calculators.abinit", ("abinit.abo*",),
        "`nstep= ... was not enough SCF cycles to converge`; ASE looks for \"scf\", and ABINIT 9 writes \"SCF\"",
        "output of 9.6; `scprqt.F90`", "by hand, 9.6",
        bad=r"(?i)was not enough (non-)?SCF (cycles|iterations) to converge", steps=r"(?m)^ ETOT +(\d+) ",
    ),
    Code(
        "CP2K", "ase.calculators.cp2k", ("*.out",),
        "`SCF run NOT converged`, `outer SCF loop FAILED to converge`; it goes on after that",
        "output of 2023.1; `qs_scf.F`", "by hand, 2023.1",
        bad="SCF run NOT converged|SCF loop FAILED to converge", steps=r"SCF run converged in +(\d+) +steps",
    ),
    Code(
        "VASP", "ase.calculators.vasp", ("OUTCAR",),
        "`EDIFF was not reached`, `hard stop was set`; also `calc.converged` of ASE is false",
        "`read_convergence` of ASE; readers of pymatgen and others", "not",
        bad="EDIFF was not reached|because hard stop was set", steps=r"Iteration +\d+\( *(\d+)\)",
    ),
    Code(
        "FHI-aims", "ase.calculators.aims", ("aims.out",),
        "no `Self-consistency cycle converged.`; ASE looks for `Have a nice day.`, which comes without it, too",
        "readers of ASE and NOMAD", "not",
        bad="SELF-CONSISTENCY CYCLE DID NOT CONVERGE", good=r"Self-consistency cycle converged\.",
        steps=r"Number of self-consistency cycles +: +(\d+)",
    ),
    Code(
        "SIESTA", "ase.calculators.siesta", ("*.out",),
        "`SCF_NOT_CONV`; ASE sets `SCFMustConverge`, with which the program stops",
        "outputs of 4.1 and 5", "not",
        bad="SCF_NOT_CONV", steps=r"SCF cycle converged after +(\d+) +iterations",
    ),
    Code(
        "CASTEP", "ase.calculators.castep", ("*.castep",),
        "`SCF cycles performed but system has not reached the groundstate`",
        "readers of AiiDA and others", "not",
        bad="has not reached the groundstate|electronic minimisation did not converge",
    ),
    Code(
        "DFTB+", "ase.calculators.dftb", ("dftb.out", "*.out"),
        "`SCC is NOT converged`; it goes on with `ConvergentSccOnly = No`",
        "`main.F90` of DFTB+", "not", bad="SCC is NOT converged",
    ),
    Code(
        "Octopus", "ase.calculators.octopus", ("static/info", "octopus.out"),
        "`SCF *not* converged`; it goes on after that", "`scf.F90` of Octopus", "not",
        bad=r"SCF \*not\* converged", steps=r"SCF converged in +(\d+) +iterations",
    ),
    Code(
        "ORCA", "ase.calculators.orca", ("orca.out",),
        "`SCF NOT CONVERGED AFTER`, `Wavefunction not fully converged`; the latter is nan in ASE",
        "reader of ASE; outputs of users", "not",
        bad=r"SCF NOT CONVERGED AFTER|Wavefunction not fully converged",
        steps=r"SCF CONVERGED AFTER +(\d+) +CYCLES",
    ),
    Code("Elk", "ase.calculators.elk", (), "its ASE calculator raises", "`ase/calculators/elk.py`", "not"),
    Code(
        "GPAW", "gpaw", (), "it raises `KohnShamConvergenceError`; `calc.scf.converged` in its older interface",
        "its manual", "not",
    ),
    Code("tblite", "tblite", (), "it raises `CalculationFailed`", "its `ase.py`", "in every test run"),
)  # fmt: skip


def find_code(calculator: Any) -> Code | None:
    """Return the entry of a calculator, made or not; None if it has none. A class may inherit from one in the table."""
    kind = calculator if isinstance(calculator, type) else type(calculator)
    for parent in kind.__mro__:
        for code in CODES:
            if f"{parent.__module__}.".startswith(f"{code.module}."):
                return code
    return None


def find_parts(calculator: Any) -> list[Any]:
    """Return a calculator and those that it is made of, as ASE's sums and DFT-D3 are."""
    from ase.calculators.calculator import BaseCalculator

    found = [calculator]
    for part in found:  # which grows
        inner = [getattr(part, name, None) for name in ("dft", "calc", "calculator")]
        inner += [*(getattr(part, "calcs", None) or ()), *(getattr(getattr(part, "mixer", None), "calcs", None) or ())]
        known = {id(each) for each in found}
        found += [each for each in inner if isinstance(each, BaseCalculator) and id(each) not in known]
    return found


def drives_program(calculator: Any) -> bool:
    """Return whether a calculator drives a program by files, or by a pipe with files beside it."""
    from ase.calculators.calculator import FileIOCalculator
    from ase.calculators.genericfileio import GenericFileIOCalculator

    if isinstance(calculator, (FileIOCalculator, GenericFileIOCalculator)) or hasattr(calculator, "make_command"):
        return True
    code = find_code(calculator)
    return code is not None and bool(code.files)


def find_unconverged(code: Code, folders: list[Path]) -> str:
    """Return what the output in the first of these folders that has any says against convergence; "" for nothing."""
    if not code.files:
        return ""
    if bad := find_bad_line(code, folders):
        return bad
    found = False
    for path, text in _read(code, folders):
        found = True
        if code.compare is not None and (what := code.compare(text)):
            return f"{path.name} of {code.name}: {what}"
        if code.good and not re.search(code.good, text):
            return f'{path.name} of {code.name} has no "{code.good.replace(chr(92), "")}"'
    return "" if found else f"{code.name} has left no {' or '.join(code.files)}: it cannot be seen whether it converged"


def find_bad_line(code: Code, folders: list[Path]) -> str:
    """Return the line in the output of a run that has failed which says that it has not converged; "" for none."""
    for path, text in _read(code, folders):
        if code.bad and (said := re.search(code.bad, text)):
            line = text[text.rfind("\n", 0, said.start()) + 1 :].partition("\n")[0]
            return f"{code.name} says in {path.name}: {' '.join(line.split()).rstrip(';')}"
    return ""


def read_steps(code: Code | None, folders: list[Path]) -> int | None:
    """Return how many steps the self-consistency took; None if the output does not say."""
    if code is None or not code.steps:
        return None
    for _, text in _read(code, folders):
        found: list[str] = re.findall(code.steps, text)
        if found:
            return int(found[-1])
    return None


def _read(code: Code, folders: list[Path]) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        paths = sorted({path for pattern in code.files for path in folder.glob(pattern) if path.is_file()})
        for path in paths:
            with open(path, "rb") as file:
                file.seek(max(path.stat().st_size - _MOST, 0))
                yield path, file.read().decode(errors="replace")
        if paths:
            return


def format_codes() -> str:
    """Return the table as it stands in the manual."""
    rows = [("code", "what says that it has not converged", "known from", "tried")]
    rows += [(code.name, code.told, code.source, code.tried) for code in CODES]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- | --- | --- | --- |", *lines[1:]])
