"""What the tables of all benchmarks share: the head, the targets, and the numbers in between."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["cores", "head", "spread", "target"]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def head(title: str, *packages: str) -> None:
    """Print what was measured, where, and with which versions."""
    print(title)
    print(f"{_processor()}, {cores()} cores, load {os.getloadavg()[0]:.1f} before; Python {platform.python_version()}")
    names = ("quests_md", *packages, "numba", "numpy")
    print(", ".join(f"{name} {_version(name)}" for name in names) + _commit(), flush=True)


def target(what: str, value: float, limit: float, unit: str, *, least: bool = False) -> bool:
    """Print a target of the issue, what was measured, and whether it is met; return that."""
    met = value >= limit if least else value <= limit
    sign, unit = "≥" if least else "≤", f" {unit}" if unit else ""
    number = str(value) if isinstance(value, int) else f"{value:.3g}"
    print(f"  {'met   ' if met else 'MISSED'}  {what}: {number}{unit} (target {sign} {limit:g}{unit})", flush=True)
    return met


def spread(values: NDArray[np.float64], digits: int) -> str:
    """Return the mean of values, and their deviation where there are several."""
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return f"; commit {done.stdout.strip()}" if done.returncode == 0 else ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
