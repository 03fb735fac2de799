"""Faults that a watched run meets, each tried many times in real processes: what went wrong afterwards.

After each fault the run is resumed, and must leave the same rows and frames as a run without a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quests_md import Index, Monitor, Session, read_run
from quests_md.comm import Serial
from quests_md.errors import QuestsError
from quests_md.hosts.mpi import world

from .printing import head
from .silicon import crystal
from .soak import WARM, Frames

STEPS = 150  # of a run; the two hot parts of it are an event each
RANKS = 4
SMALL = 40  # kB; a disk of this size holds the first rows of a run
PATIENCE = 1800.0  # s; a program that takes longer hangs
FILES = ("candidates.extxyz", "cutouts.extxyz", "history.extxyz", "events.jsonl")
_BETWEEN = re.compile(r"[\s,/\"=:\[\]{}]+")  # words of the files
_ROUNDING = (1e-8, 1e-8)  # relative and absolute
_ROUNDED = ("seconds", "novelty", "excess")  # columns that need not be the same to the last digit
Random = np.random.Generator
Fault = Callable[[Path, Path, Random], None]  # index, output folder


class Wrong(Exception):
    """What a fault has led to, and must not."""


class NotTried(Exception):
    """Why a fault cannot be tried on this machine."""


def main() -> None:
    """Try the faults, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="of a fault whose program is forked (%(default)s)")
    parser.add_argument("--started", type=int, default=4, help="of one whose program must be started (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), help="these faults")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    head("Faults: how often each was tried, and how often something was wrong afterwards")
    with tempfile.TemporaryDirectory() as name:
        if not try_all(Path(name), options.only or list(FAULTS), options.trials, options.started, options.seed):
            raise SystemExit(1)


def try_all(folder: Path, names: list[str], trials: int, started: int, seed: int = 0) -> bool:
    """Try faults, print a row for each and what was wrong; return whether nothing was."""
    Index.build(crystal(4, WARM, 1), threads=1).save(folder / "si.qindex")
    _run(folder / "si.qindex", folder / "whole")
    whole, failures = read(folder / "whole"), 0
    print("failed: it ended otherwise than is right, or left, when resumed, something else than a run without a fault")
    print(f"\n  {'fault':<52}trials   failed   right")
    for name in names:
        rng, wrong = np.random.default_rng([seed, len(name)]), []
        act, is_started, right = FAULTS[name]
        n = started if is_started else trials
        try:
            for trial in range(n):
                wrong += _try(act, folder / "si.qindex", folder / f"{name}-{trial}", rng, whole)
        except NotTried as why:
            print(f"  {WHAT[name]:<52}  not tried: {why}", flush=True)
            continue
        print(f"  {WHAT[name]:<52}{n:>6}{len(wrong):>9}   {right}", flush=True)
        for text in wrong[:3]:
            print(f"      {text}", flush=True)
        failures += len(wrong)
    return not failures


def _try(act: Fault, index: Path, place: Path, rng: Random, whole: dict[str, str]) -> list[str]:
    """Let a run meet a fault, and resume it; return what is wrong."""
    try:
        act(index, place, rng)
        _resume(index, place)
        _compare(place, whole)
    except Wrong as error:
        return [str(error)]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return []


# -- the run -----------------------------------------------------------------------------------------------------------


def _run(index: Path, folder: Path, comm: Any = None, also: Callable[[int], object] | None = None) -> None:
    """Watch from the first frame without a row on, to the end or until the run is to stop."""
    comm = Serial() if comm is None else comm
    monitor = Monitor(Index.open(index), select=5.0, halt=1e9, consecutive=2, precision="double", comm=comm)
    more: dict[str, Any] = {"history": 3, "after": 1, "budget": 4, "cutout": {"radius": 2.0, "most": 1}}
    frames = Frames(comm)
    with contextlib.redirect_stdout(None), Session(monitor, folder, resume=True, **more) as session:
        for step in range(next(session.counter), STEPS):
            if also is not None:
                also(step)
            if session.observe(frames.at(step)).stop:
                break


def read(folder: Path) -> dict[str, str]:
    """Return what a run has left, as far as it must be the same whatever it met."""
    with open(folder / "monitor.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in _ROUNDED} for row in csv.DictReader(file)]
    left = {name: (folder / name).read_text() for name in FILES if (folder / name).exists()}
    return {"monitor.csv": "\n".join(",".join(row.values()) for row in rows)} | left


def _resume(index: Path, folder: Path) -> None:
    code, said = _wait(_fork(folder, lambda: _run(index, folder)), folder)
    if code:
        raise Wrong(f"it cannot be resumed: {said[-300:]}")


def _compare(folder: Path, whole: dict[str, str]) -> None:
    left = read(folder)
    for name, text in whole.items():
        if left.get(name) != text:
            _compare_numbers(name, left.get(name, ""), text)


def _compare_numbers(name: str, text: str, wanted: str) -> None:
    """Compare word by word: sums over several ranks are rounded otherwise."""
    words, others = (_BETWEEN.split(each) for each in (text, wanted))
    if len(words) != len(others):
        raise Wrong(f"{name} has {len(words)} words, and {len(others)} without a fault")
    for word, other in zip(words, others, strict=True):
        if word != other and not (_is_number(word) and np.isclose(float(word), float(other), *_ROUNDING)):
            raise Wrong(f"{name} has {word}, and {other} without a fault")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# -- processes ---------------------------------------------------------------------------------------------------------


def _fork(folder: Path, work: Callable[[], object]) -> int:
    """Start a process that does some work with kernels that are loaded; what it says goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        with open(f"{folder}.said", "ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:  # noqa: BLE001 - whatever it is, the file has it
            traceback.print_exc()
    os._exit(code)


def _wait(pid: int, folder: Path) -> tuple[int, str]:
    """Return how a process ended, negative after a signal, and what it said; kill it if it hangs."""
    until = time.monotonic() + PATIENCE
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Wrong(f"it hung for {PATIENCE:g} s")
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = Path(f"{folder}.said")
    text = said.read_text(errors="replace") if said.exists() else ""
    said.unlink(missing_ok=True)
    return code, text


def _rows(folder: Path) -> int:
    path = folder / "monitor.csv"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _reach(pid: int, folder: Path, rng: Random) -> None:
    """Wait until the run is somewhere in its middle."""
    rows = int(rng.integers(1, STEPS - 30))
    while _rows(folder) < rows and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        pass
    time.sleep(rng.uniform(0.0, 0.01))


def _command(index: Path, folder: Path, failing: int = -1) -> list[str]:
    return [sys.executable, "-m", "benchmarks.faults", str(index), str(folder), str(failing)]


def _start(index: Path, folder: Path, ranks: int = 1, failing: int = -1, **environment: str) -> Any:
    """Start a run in a new interpreter, on some ranks of MPI."""
    command = _command(index, folder, failing)
    if ranks > 1:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of a shell may ignore it
    )


def _end(program: Any) -> tuple[int, str]:
    try:
        said = program.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
        raise Wrong(f"it hung for {PATIENCE:g} s") from None
    return program.returncode, said


def _expect(right: bool, code: int, said: str) -> None:
    if not right:
        raise Wrong(f"it ended with {code}: {said[-300:]!r}")


# -- the faults --------------------------------------------------------------------------------------------------------


def _signalled(number: int, codes: tuple[int, ...]) -> Fault:
    def act(index: Path, folder: Path, rng: Random) -> None:
        pid = _fork(folder, lambda: _run(index, folder))
        _reach(pid, folder, rng)
        os.kill(pid, number)
        code, said = _wait(pid, folder)
        _expect(code in codes, code, said)

    return act


def _killed_again(index: Path, folder: Path, rng: Random) -> None:
    for _ in range(4):
        pid = _fork(folder, lambda: _run(index, folder))
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)
        _wait(pid, folder)


def _limited(kind: int, find: Callable[[Random], int]) -> Fault:
    """Lower a limit of the system in the middle of a run: it must end with one of our errors, or reach its end."""

    def act(index: Path, folder: Path, rng: Random) -> None:
        at, limit = int(rng.integers(1, STEPS - 30)), find(rng)

        def lower(step: int) -> None:
            if step == at:
                now = _in_use(kind)
                resource.setrlimit(kind, (now + limit, resource.getrlimit(kind)[1]))

        def work() -> None:
            try:
                _run(index, folder, also=lower)
            except QuestsError as error:
                print(error, file=sys.stderr)
                os._exit(7)

        code, said = _wait(_fork(folder, work), folder)
        _expect(code == 0 or (code == 7 and bool(said)), code, said)

    return act


def _in_use(kind: int) -> int:
    if kind == resource.RLIMIT_AS:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if kind == resource.RLIMIT_NOFILE:
        return max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    return 0


def _run_isolated(script: str, *words: str) -> tuple[int, str]:
    """Run a script of the shell that may mount: nobody else sees what it mounts. Return how it ended, and said."""
    alone = ["unshare", "-rm"]
    try:
        able = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    except FileNotFoundError:
        raise NotTried("this system has no `unshare`") from None
    if able.returncode:
        raise NotTried(able.stderr.strip())
    done = subprocess.run([*alone, "sh", "-c", script, *words], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def _read_only(index: Path, folder: Path, rng: Random) -> None:
    """A folder on a file system that cannot be written."""
    folder.mkdir()
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    code, said = _run_isolated(script, str(folder), *_command(index, folder))
    _expect(code != 0 and "Read-only file system" in said and str(folder) in said, code, said)
    _expect(not any(folder.iterdir()), code, "something was written")


# Run until the disk is full, keep what is there, and run again on the full disk: both must fail.
_FULL = """
mount -t tmpfs -o size=$1k none "$0" || exit 99
kept=$2
shift 2
"$@" && exit 98
cp -r "$0/uq" "$kept.first"
"$@" && exit 97
cp -r "$0/uq" "$kept"
"""


def _full_disk(index: Path, folder: Path, rng: Random) -> None:
    """A disk that is full after some rows: an error says so, also if the run is resumed on it, and nothing is lost."""
    whole = sum(path.stat().st_size for path in (folder.parent / "whole").iterdir())
    disk, size = Path(f"{folder}.disk"), int(rng.integers(SMALL, int(0.9e-3 * whole)))  # kB
    disk.mkdir()
    code, said = _run_isolated(_FULL, str(disk), str(size), str(folder), *_command(index, disk / "uq"))
    _expect(code == 0 and said.count("No space left on device") >= 2, code, said)
    first, again = (_check_readable(each) for each in (Path(f"{folder}.first"), folder))
    wanted = read(folder.parent / "whole")["monitor.csv"]
    # A resumed run removes what the disk had no room for to the end, so another row may find room.
    _expect(bool(first) and again.startswith(first) and wanted.startswith(again), code, "rows are gone")


def _check_readable(folder: Path) -> str:
    """Read all files of a run; return its rows."""
    try:
        run = read_run(folder)
        kept = {int(atoms.info["step"]) for atoms in run.candidates()}
        for frames in (run.cutouts, run.history, run.implausible):
            list(frames())
    except QuestsError as error:
        raise Wrong(f"what was written before cannot be read: {error}") from None
    saved = {int(row["step"]) for row in run.rows if row["saved"]}
    saved -= {int(text.split(":")[1]) for text in run.rows["dropped"] if text}
    if run.n_damaged or not saved <= kept:
        raise Wrong(f"{run.n_damaged} rows are damaged; frames of the steps {saved} should be there, and {kept} are")
    return read(folder)["monitor.csv"]


def _first_start(index: Path, folder: Path, rng: Random) -> None:
    """Ctrl-C at a random moment of a first start: while it imports, compiles or runs."""
    with tempfile.TemporaryDirectory() as cache:
        program = _start(index, folder, NUMBA_CACHE_DIR=cache)
        os.set_blocking(program.stdout.fileno(), False)
        began, spent, budget = time.monotonic(), 0.0, rng.uniform(0.5, 20.0)  # s of the processor
        while spent < budget and program.poll() is None and time.monotonic() < began + PATIENCE:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
                spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            time.sleep(0.01)
        is_over = program.poll() is not None
        program.send_signal(signal.SIGINT)
        os.set_blocking(program.stdout.fileno(), True)
        code, said = _end(program)
    _expect(code in (0 if is_over else 130, 130, -signal.SIGINT), code, said)


def _stopped_rank(index: Path, folder: Path, rng: Random) -> None:
    program = _start(index, folder, RANKS)
    _reach(program.pid, folder, rng)
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()  # the proxy of mpiexec
    found = Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text().split() if children else []
    rank = int(rng.choice(found)) if found else 0
    if rank:
        os.kill(rank, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(rank, signal.SIGCONT)
    code, said = _end(program)
    _expect(code == 0 and rank > 0, code, said)


def _failing_rank(index: Path, folder: Path, rng: Random) -> None:
    code, said = _end(_start(index, folder, RANKS, failing=int(rng.integers(1, STEPS - 30))))
    _expect(code != 0 and "a rank of its own" in said, code, said)


def _interrupted_ranks(index: Path, folder: Path, rng: Random) -> None:
    program = _start(index, folder, RANKS)
    _reach(program.pid, folder, rng)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    code, said = _end(program)
    _expect(code != 0, code, said)


def _cache(ranks: int, prepare: Callable[[Path], str], **environment: str) -> Fault:
    def act(index: Path, folder: Path, rng: Random) -> None:
        with tempfile.TemporaryDirectory() as cache:
            where = prepare(Path(cache))
            code, said = _end(_start(index, folder, ranks, NUMBA_CACHE_DIR=where, **environment))
        _expect(code == 0 and "compiling" in said, code, said)

    return act


def _unwritable(cache: Path) -> str:
    (cache / "file").write_text("")
    return str(cache / "file" / "below")


def _damaged(cache: Path) -> str:
    """Copy the compiled code that there is, and damage all of it."""
    from numba.core.caching import _CacheLocator

    from quests_md.kernels import kernel_sum

    below = cache / _CacheLocator.get_suitable_cache_subpath(kernel_sum.__file__)
    shutil.copytree(kernel_sum.log_kernel_sum._cache.cache_path, below)
    for number, path in enumerate(sorted(below.glob("*.nbc"))):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if number % 2 else data[:-99] + bytes(99))
    return str(cache)


_ONLY = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}  # else the folder of the kernels would serve
_ENDS = "it finishes, or an error says why"
# name: (fault, whether its program is started and not forked, how it must end)
FAULTS: dict[str, tuple[Fault, bool, str]] = {
    "kill": (_signalled(signal.SIGKILL, (0, -9)), False, "killed"),
    "kill-again": (_killed_again, False, "killed"),
    "sigterm": (_signalled(signal.SIGTERM, (0, -15)), False, "halted at an evaluation"),
    "sigint": (_signalled(signal.SIGINT, (0, 130)), False, "KeyboardInterrupt"),
    "file-size": (_limited(resource.RLIMIT_FSIZE, lambda rng: int(rng.integers(2_000, 200_000))), False, _ENDS),
    "memory": (_limited(resource.RLIMIT_AS, lambda rng: int(rng.integers(0, 4_000_000))), False, _ENDS),
    "descriptors": (_limited(resource.RLIMIT_NOFILE, lambda rng: int(rng.integers(0, 3))), False, _ENDS),
    "full-disk": (_full_disk, True, "an error says why, all is readable"),
    "read-only": (_read_only, True, "an error says why, nothing is written"),
    "sigint-first-start": (_first_start, True, "KeyboardInterrupt"),
    "cache-unwritable": (_cache(2, _unwritable, **_ONLY), True, "it finishes"),
    "cache-damaged": (_cache(2, _damaged), True, "it finishes"),
    "cache-shared": (_cache(RANKS, str), True, "it finishes"),
    "stopped-rank": (_stopped_rank, True, "the others wait, it finishes"),
    "failing-rank": (_failing_rank, True, "all ranks end, an error says why"),
    "sigint-ranks": (_interrupted_ranks, True, "all ranks end"),
}
WHAT = {
    "kill": "kill -9 at a random moment",
    "kill-again": "kill -9 four times, also while it starts",
    "sigterm": "SIGTERM at a random moment",
    "sigint": "Ctrl-C at a random moment of a run",
    "file-size": "no larger files (RLIMIT_FSIZE) from some moment on",
    "memory": "no more memory (RLIMIT_AS) from some moment on",
    "descriptors": "no more descriptors (RLIMIT_NOFILE)",
    "full-disk": "disk full after some rows, and when resumed",
    "read-only": "output folder on a read-only file system",
    "sigint-first-start": "Ctrl-C at a random moment of a first start",
    "cache-unwritable": "numba cache cannot be written, 2 ranks",
    "cache-damaged": "every file of the numba cache damaged, 2 ranks",
    "cache-shared": "empty numba cache, shared by 4 ranks",
    "stopped-rank": "one rank of 4 stopped for a second (SIGSTOP)",
    "failing-rank": "one rank of 4 raises an error",
    "sigint-ranks": "Ctrl-C to 4 ranks at a random moment",
}

if __name__ == "__main__":
    ranks, failing = world(), int(sys.argv[3])

    def fail(step: int) -> None:
        if step == failing and ranks.rank == ranks.size - 1:
            raise ValueError("a rank of its own")

    try:
        _run(Path(sys.argv[1]), Path(sys.argv[2]), ranks, fail)
    except QuestsError as error:
        raise SystemExit(str(error)) from None
