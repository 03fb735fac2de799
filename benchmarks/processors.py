"""Whether the kernels are right on every kind of processor that this one can stand in for."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding

from .printing import head, target

ROOT = Path(__file__).parents[1]

# What the kernels are compiled for: LLVM's name of a processor, its features, and the width of vectors.
SETTINGS = {
    "plain loops": ("x86-64", "+sse2"),
    "128 bits": ("x86-64", "+avx,+fma"),
    "256 bits": ("x86-64-v3", "+avx,+avx2,+fma,+bmi2"),
    "512 bits": ("x86-64-v4", "+avx,+avx2,+fma,+bmi2,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"),
}


def can_run(setting: str) -> bool:
    """Return whether this processor has what a setting compiles for."""
    if not binding.get_process_triple().startswith("x86_64"):
        return False
    mine = binding.get_host_cpu_features()
    return all(mine.get(feature[1:], False) for feature in SETTINGS[setting][1].split(","))


def environment(setting: str, cache: str) -> dict[str, str]:
    """Return the environment of a process that compiles for a setting, and keeps the code in a folder of its own."""
    name, features = SETTINGS[setting]
    return os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": cache}


def start(setting: str, cache: str, *arguments: str) -> subprocess.Popen[str]:
    """Start the check of a setting."""
    command = [sys.executable, "-m", "benchmarks.processor_check", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment(setting, cache), text=True, **streams)


def main() -> None:
    """Check each setting, print a table, and with --tests run the tests of the kernels for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tests", nargs="*", metavar="PATH", help="run these tests too (tests/kernels if none is named)"
    )
    options = parser.parse_args()
    head("Kernels for other processors")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = {setting: start(setting, f"{folder}/{setting}") for setting in filter(can_run, SETTINGS)}
        for setting, process in started.items():
            out, said = process.communicate()
            if process.returncode:
                sys.exit(f"{setting}: the check ended with {process.returncode}\n{said}")
            results[setting] = json.loads(out)
        _print(results)
        if options.tests is not None:
            _test(options.tests or ["tests/kernels"], list(results), folder)


def _print(results: dict[str, Any]) -> None:
    print(
        "\n                                        blocks of sums    rounding/allowed   dH error/promised  products\n"
        "                 decisions   open wrong left out too much   single  double   single  double      single"
    )
    for setting, result in results.items():
        one, two = result["single"], result["double"]
        print(
            f"  {setting:<14}{result['decisions']:>10}{result['open']:>7}{result['wrong']:>6}"
            f"{one['left out'] + two['left out']:>9}{one['too much'] + two['too much']:>9}"
            f"{one['rounding']:>9.2f}{two['rounding']:>8.2f}{one['error']:>9.3f}{two['error']:>8.3f}"
            f"{100 * one['products'] / (one['blocks'] - one['left out']):>10.0f} %"
        )
    values = np.array([result["values"] for result in results.values()])
    print()
    target("decisions, least of all", min(r["decisions"] for r in results.values()), 50_000, "", least=True)
    target(
        "blocks left out, least of all", min(r["single"]["left out"] for r in results.values()), 10_000, "", least=True
    )
    target("wrong decisions", sum(r["wrong"] for r in results.values()), 0, "")
    of_all = [r[p] for r in results.values() for p in ("single", "double")]
    target("sums from which too much was left out", sum(r["too much"] for r in of_all), 0, "")
    target("rounding / allowed", max(r["rounding"] for r in of_all), 1.0, "")
    target("error of dH / promised", max(r["error"] for r in of_all), 1.0, "")
    target("dH in double precision between processors", float(np.ptp(values, axis=0).max()), 1e-9, "nats")


def _test(paths: list[str], settings: list[str], folder: str) -> None:
    """Run tests for each setting and print the last line of each."""
    print(f"\nTests: {' '.join(paths)}")
    for setting in settings:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(setting, f"{folder}/{setting}"),
            capture_output=True,
            text=True,
            check=False,
        )
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        print("\n".join([f"  {setting:<14}{done.stdout.strip().splitlines()[-1]}", *failed]), flush=True)
