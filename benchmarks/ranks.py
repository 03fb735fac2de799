"""Strong scaling of verbs under mpiexec: the same work by one rank and by two, with one thread each.

Only a machine with a free core for every rank can tell. A rank has loaded everything and done the work of a small
dataset before the clock starts; reading, computing and writing are timed. The files that the ranks write must be the
same, but for the date in an index.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk

from quests_md import Index

from .printing import cores, head

RANKS = (1, 2)
LIMIT = 1800  # s
SHARE = 100  # the small dataset has this part of the frames, and two at least

# verb: (arguments with REF, TEST and the name of the file that it writes)
VERBS = {
    "entropy": ("entropy", "REF", "-o", "out.json"),
    "learning-curve": ("learning-curve", "REF", "--fractions", "0.25,0.5,1", "-o", "out.json"),
    "overlap": ("overlap", "TEST", "--reference", "REF", "-o", "out.json"),
    "dh": ("dh", "TEST", "--reference", "REF", "-o", "out.extxyz"),
    "index build": ("index", "build", "REF", "-o", "out.qindex"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environments", type=int, default=20_000, help="of the made reference (%(default)s)")
    parser.add_argument("--reference", type=Path, help="a file of frames, instead of one that is made")
    parser.add_argument("--test", type=Path, help="a file of frames that are compared with it")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VERBS, default=list(VERBS))
    options = parser.parse_args()
    head("Verbs under mpiexec, one thread per rank", "mpi4py")
    free = cores()
    if free < max(RANKS):
        print(f"{free} cores for {max(RANKS)} ranks: they take turns, and the ratios say nothing")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_env = _fill(folder, options)
        print(f"{n_env[0]} environments of the reference, {n_env[1]} of the test set; {free} cores")
        columns = "".join(f"{f'{n} rank' + 's' * (n > 1) + ' (s)':>14}" for n in RANKS)
        print(f"\n  {'verb':<16}{columns}{'ratio':>9}   same file")
        for verb in options.only:
            _measure(verb, folder, options.repetitions)


def _fill(folder: Path, options: argparse.Namespace) -> list[int]:
    """Write both datasets, and a small part of each; return their environments."""
    made = {"REF": (options.reference, options.environments, 0), "TEST": (options.test, options.environments, 10_000)}
    sizes = []
    for name, (given, n, seed) in made.items():
        frames = ase.io.read(given, ":") if given else [_distort(seed + i) for i in range(max(2, n // 64))]
        ase.io.write(folder / f"{name}.extxyz", frames)
        ase.io.write(folder / f"{name}-small.extxyz", frames[:: max(1, min(SHARE, len(frames) // 2))])
        sizes.append(sum(map(len, frames)))
    return sizes


def _distort(seed: int) -> Atoms:
    """Return a cell of 64 atoms of silicon, strained and rattled."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + np.diag(rng.uniform(-0.05, 0.05, 3))), scale_atoms=True)
    atoms.rattle(rng.uniform(0.03, 0.25), seed=seed)
    return atoms


def _measure(verb: str, folder: Path, repetitions: int) -> None:
    """Print one row. The numbers of ranks take turns, so that a busy machine is unfair to both alike."""
    times: dict[int, list[float]] = {n: [] for n in RANKS}
    written: dict[int, bytes] = {}
    for _ in range(repetitions):
        for n in RANKS:
            times[n].append(_job(verb, folder, n))
            written[n] = _read(next(folder.glob("out.*")))
    first, last = (statistics.median(times[n]) for n in (RANKS[0], RANKS[-1]))
    seconds = "".join(f"{statistics.median(values):>14.2f}" for values in times.values())
    same = "yes" if len(set(written.values())) == 1 else "NO"
    print(f"  {verb:<16}{seconds}{first / last:>9.2f}   {same}", flush=True)


def _read(path: Path) -> bytes:
    """Return the bytes of a result, and remove it; of an index those without its date."""
    if path.suffix == ".qindex":
        index = Index.open(path)
        dataclasses.replace(index, provenance={**index.provenance, "created": ""}).save(path)
    content = path.read_bytes()
    path.unlink()
    return content


def _job(verb: str, folder: Path, ranks: int) -> float:
    """Return the seconds of a verb on so many ranks."""
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "benchmarks.ranks", verb, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{verb} on {ranks} ranks failed\n{done.stderr[-4000:]}")
    seconds: float = json.loads(done.stdout)
    return seconds


def _rank(verb: str, folder: Path) -> None:
    """Be one rank: do the verb for the small datasets, then for the whole ones; rank 0 prints the seconds."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    _call(verb, folder, "-small")
    for path in folder.glob("out.*") if world.rank == 0 else ():
        path.unlink()
    world.Barrier()
    started = time.perf_counter()
    _call(verb, folder, "")
    world.Barrier()
    if world.rank == 0:
        print(json.dumps(time.perf_counter() - started))


def _call(verb: str, folder: Path, suffix: str) -> None:
    from quests_md.cli import main as quests_md

    names = {"REF": f"REF{suffix}.extxyz", "TEST": f"TEST{suffix}.extxyz"}
    words = [names.get(word, word) for word in VERBS[verb]]
    paths = [str(folder / word) if "." in word and word[-1].isalpha() else word for word in words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        quests_md([*paths, "--threads", "1"], standalone_mode=False)


if __name__ == "__main__":
    _rank(sys.argv[1], Path(sys.argv[2]))
