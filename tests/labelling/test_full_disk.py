"""A full disk, with a real electronic-structure code. Making one needs the right to mount, which not every CI has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from dft import MISSING, PRESENT, espresso

pytestmark = [pytest.mark.skipif(not PRESENT, reason=MISSING), pytest.mark.usefixtures("scratch_folders")]

FULL = """
mount -t tmpfs -o size=300k none "$1" || exit 99
cd "$2" && shift 2 && exec "$@"
"""


def test_a_full_disk_is_told_and_no_label(tmp_path):
    (tmp_path / "scratch").mkdir()
    code = (
        "from dft import *; from oracles import *\n"
        f"found = compute(espresso(kspacing=0.6, scratch={str(tmp_path / 'scratch')!r}), silicon())\n"
        "print(found.problem, found.labels, found.reason)"
    )
    command = ["unshare", "-m", "sh", "-c", FULL, "sh", str(tmp_path / "scratch"), str(tmp_path), sys.executable]
    variables = {**os.environ, "PYTHONPATH": espresso().environment["PYTHONPATH"]}
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, env=variables, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("a full disk needs the right to mount")
    assert done.stdout.startswith("failed None disk full: "), done.stdout + done.stderr
    assert "error writing file" in done.stdout
