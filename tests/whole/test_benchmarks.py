"""Every benchmark can begin: what it imports exists. `scripts/check` checks what it calls."""

from __future__ import annotations

import subprocess
import sys

from limits import LIMIT
from paths import ROOT

from benchmarks.__main__ import NAMES

IMPORT_ALL = f"""
from importlib import import_module
for name in {list(NAMES)}:
    assert callable(import_module("benchmarks." + name).main), name
"""


def test_what_the_benchmarks_import_exists() -> None:
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
