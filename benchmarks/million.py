"""A million silicon atoms in LAMMPS, two ranks, Stillinger-Weber: time and memory of a watched evaluation.

Two jobs under mpiexec, watched and alone, differ in nothing else: both load the package, its kernels and the index, so
that what they differ by grows with the atoms.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quests_md import Index
from quests_md.errors import QuestsError

from .memory import peak_bytes
from .printing import head, target
from .silicon import Lammps, cache_folder, frames_of, md_index, sample

CELLS = 50  # 10⁶ atoms
RANKS = 2
EQUILIBRATION, STEPS, EVERY = 30, 4, 2
REFERENCES = {300: 4, 600: 3}  # frames of 1000 atoms at each temperature (K)
ALONE = "alone"
SELECT, HALT = 5.0, 1e6
PEAKS = ("evaluated", "peak")  # after the last evaluation, and after the last frame was written
MEMORY = 1000.0  # bytes per atom
LIMIT = 600  # s


def main() -> None:
    """Run both jobs and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=cache_folder(), help="keep made data here (%(default)s)")
    parser.add_argument("--cells", type=int, default=CELLS, help="cubic cells along each side (%(default)s)")
    parser.add_argument("--ranks", type=int, default=RANKS)
    parser.add_argument("--values", nargs="+", choices=["exact", "flagged"], default=["exact", "flagged"])
    options = parser.parse_args()
    head(f"{8 * options.cells**3} silicon atoms, {options.ranks} ranks of one thread, 300 K", "lammps", "mpi4py")
    index = md_index(options.data, "million", REFERENCES)
    print(f"{len(index)} references, select = {SELECT:g}; {STEPS} steps, every {EVERY} evaluated")
    alone = _job(options, str(index.path), ALONE)
    assert alone is not None
    print("                                                   our bytes per own atom:")
    print("  values     evaluation (s)   µs per own atom   evaluating   rank 0 at the end   wall (s)")
    print(f"  {ALONE:<76}{alone[0]['wall']:>11.0f}")
    for values in options.values:
        watched = _job(options, str(index.path), values)
        if watched is not None:
            _print(values, watched, alone)


def _print(values: str, watched: list[Any], alone: list[Any]) -> None:
    """Print one row and its target, of the rank with the most memory per atom."""
    seconds, most = watched[0]["seconds"], max(rank["atoms"] for rank in watched)
    memory = {key: [(w[key] - a["peak"]) / w["atoms"] for w, a in zip(watched, alone, strict=True)] for key in PEAKS}
    evaluating, at_end = max(memory["evaluated"]), memory["peak"][0]
    print(
        f"  {values:<10}{seconds:>15.2f}{1e6 * seconds / most:>18.2f}{evaluating:>13.0f}{at_end:>20.0f}"
        f"{watched[0]['wall']:>11.0f}"
    )
    print(f"  largest dH {watched[0]['maximum']:.1f}, {watched[0]['n_select']} atoms above select")
    atoms = sum(rank["atoms"] for rank in watched)
    target(f"{values}: {atoms} atoms evaluated, our memory", evaluating, MEMORY, "bytes per atom")
    target(f"{values}: rank 0 after it has written the last frame", at_end, MEMORY, "bytes per atom")


def _job(options: Any, index: str, values: str) -> list[Any] | None:
    """Run a job; return what each rank tells, None where these values are not available."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [index, values, str(options.cells), folder]
        command = ["-m", "benchmarks.million", *arguments]
        mpiexec = str(Path(sys.executable).parent / "mpiexec")
        done = subprocess.run(
            [mpiexec, "-n", str(options.ranks), sys.executable, *command],
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        files = sorted(Path(folder).glob("rank-*.json"))
        told = [json.loads(file.read_text()) for file in files]
        if told and values != ALONE and "refused" not in told[0]:
            told[0]["seconds"] = _seconds(Path(folder))
    if done.returncode != 0 or not told:
        raise SystemExit(f"{values}: the job failed\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    if "refused" in told[0]:
        print(f"  {values}: not available ({told[0]['refused']})")
        return None
    return told


def _rank(path: str, values: str, cells: int, folder: str) -> None:
    """Be one rank of a job: run, and leave what is to be told in a file."""
    started = time.perf_counter()
    from mpi4py import MPI

    from quests_md.hosts.lammps import attach

    index = Index.open(path)
    index.delta_entropy(frames_of(sample(1, 300, 1, 1, 1)), 1)  # kernels, and the layout of the index, in both jobs
    lammps = Lammps(cells, 300, 11)
    lammps.run(EQUILIBRATION)
    told: dict[str, Any] = {"atoms": lammps.module.extract_setting("nlocal")}
    keywords = {"select": SELECT, "halt": HALT, "every": EVERY, "values": values, "output": f"{folder}/uq"}
    watch = None
    try:
        if values != ALONE:
            watch = attach(lammps.module, index, elements=["Si"], **keywords)
            _note_before(watch, "after_command", told)
        lammps.run(STEPS)
        told.update(peak=peak_bytes(), wall=time.perf_counter() - started)
        told.setdefault("evaluated", told["peak"])
    except QuestsError as error:
        told["refused"] = str(error)
    if watch is not None:
        told.update(maximum=watch.decision.maximum, n_select=watch.decision.n_select)
    with contextlib.redirect_stdout(io.StringIO()):
        lammps.close()
    (Path(folder) / f"rank-{MPI.COMM_WORLD.rank}.json").write_text(json.dumps(told))


def _note_before(watch: Any, name: str, told: dict[str, Any]) -> None:
    """Note the peak memory before a method is called that writes the last frame, which one rank gathers."""
    method = getattr(watch, name)

    def call() -> None:
        told["evaluated"] = peak_bytes()
        method()

    setattr(watch, name, call)


def _seconds(folder: Path) -> float:
    """Return the median seconds of an evaluation, as the run's own table tells."""
    with open(folder / "uq/monitor.csv", newline="") as file:
        return statistics.median(float(row["seconds"]) for row in csv.DictReader(file))


if __name__ == "__main__":
    _rank(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
