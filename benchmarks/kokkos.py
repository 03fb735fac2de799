"""What watching costs a run with KOKKOS, beside the same run without, on the processor."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

from ase.build import bulk

from quests_md import Index

from .printing import head

ROOT = Path(__file__).parent.parent
LMP = "/opt/lammps-kokkos/build/lmp"  # where scripts/newer-lammps makes it
TIMES, STEPS, EVERY = 5, 400, 10
# The tests run these inputs, too.
SILICON = """\
units metal
lattice diamond 5.431
region box block 0 {cells} 0 {cells} 0 {cells}
create_box 1 box
create_atoms 1 box
mass 1 28.085
pair_style {potential}
pair_coeff * * Si.{potential} Si
comm_modify cutoff 7.0
velocity all create {velocity} loop geom
fix move all nve
timestep 0.001
"""
ATTACH = """\
python quests_attach input 2 SELF quests.toml format ps here "from quests_md.hosts.lammps import *"
python quests_attach invoke
fix watch all python/invoke {every} {when} quests_step
"""
SETUP = SILICON.format(cells=4, potential="tersoff", velocity="600 7")
IDLE = "fix quests_dH all property/atom d_dH i_quests\nfix quests all external pf/array 1\n"
SETTINGS = 'index = "si.qindex"\nelements = ["Si"]\nevery = {every}\nselect = 1e6\nhalt = 1e7\noutput = "uq"\n'
# What is run: its name, and the lines between the set-up and the run.
RUNS = {
    "not watched": "",
    "idle fixes, as a watched run holds them": IDLE,
    f"watched every {EVERY} steps, end_of_step": ATTACH.format(every=EVERY, when="end_of_step"),
    f"watched every {EVERY} steps, post_force": ATTACH.format(every=EVERY, when="post_force"),
}


def measure(folder: Path, lines: str, options: list[str]) -> tuple[float, float]:
    """Run once; return the time of the loop, and that of our evaluations, in s."""
    (folder / "in.lammps").write_text(f"{SETUP}{lines}run 10\nrun {STEPS}\n")
    for old in (folder / "uq").glob("*"):
        old.unlink()
    environment = {
        **os.environ,
        "PATH": f"{ROOT}/.venv-sid/bin:{os.environ['PATH']}",
        "LAMMPS_POTENTIALS": "/usr/share/lammps/potentials",
        "NUMBA_CACHE_DIR": f"{ROOT}/.venv-sid/numba-cache",
    }
    command = [str(ROOT / "scripts/newer-lammps"), "run", "kokkos", LMP, *options, "-in", "in.lammps", "-log", "log"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    text = (folder / "log").read_text()
    loop = float(re.findall(r"Loop time of (\S+)", text)[-1])
    rows = (folder / "uq/monitor.csv").read_text().splitlines() if lines.startswith("python") else []
    column = rows[0].split(",").index("seconds") if rows else 0
    return loop, sum(float(row.split(",")[column]) for row in rows[-STEPS // EVERY :])


def main() -> None:
    """Run everything in turn, several times; print medians, and what the fixes cost beside an unwatched run."""
    head(f"KOKKOS (OpenMP, one thread): 512 Si, Tersoff, {STEPS} steps; medians of {TIMES} runs in turn")
    frames = [bulk("Si", cubic=True) * (2, 2, 2) for _ in range(4)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.08, seed=seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Index.build(frames).save(folder / "si.qindex")
        (folder / "quests.toml").write_text(SETTINGS.format(every=EVERY))
        kinds = {"KOKKOS": ["-k", "on", "t", "1", "-sf", "kk"], "plain": []}
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(TIMES):
            for kind, options in kinds.items():
                for name, lines in RUNS.items():
                    found.setdefault((kind, name), []).append(measure(folder, lines, options))
        print(f"{'':<10}{'':<45}{'µs per atom-step':>18}{'beside unwatched':>18}{'without dH itself':>19}")
        for (kind, name), times in found.items():
            loop, base = (statistics.median(t for t, _ in found[kind, key]) for key in (name, "not watched"))
            rest = statistics.median(t - seconds for t, seconds in times)
            print(f"{kind:<10}{name:<45}{loop / STEPS / 512 * 1e6:>18.3f}{loop / base:>18.3f}{rest / base:>19.3f}")
