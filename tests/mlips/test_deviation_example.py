"""The example that sets dH beside the model deviation of DeePMD, shortened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from lammps_runs import ok, run_json
from limits import LIMIT
from paths import ROOT

from benchmarks.potentials import KINDS, is_here

pytestmark = [pytest.mark.mlips, pytest.mark.lammps]


def test_dH_and_deviation_of_one_run(tmp_path):
    if not is_here("deepmd"):
        pytest.skip(f"no {KINDS['deepmd'].package}: scripts/test-mlips makes an environment with it")
    folder = shutil.copytree(ROOT / "lammps_examples" / "deepmd_deviation", tmp_path / "example")
    command = [sys.executable, "run.py", "--steps", "20", "--picoseconds", "1", "--timed", "20"]
    done = ok(subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False))
    found = json.loads((folder / "found.json").read_text())
    assert len(found["step"]) == 51
    assert np.isfinite(found["dH"]).all()
    assert (np.array(found["deviation"]) > 0).all()
    assert run_json(folder)["evaluations"] == 51
    for said in ("rank correlation of dH and deviation, all frames", "four models, deviation", "three frames in a row"):
        assert said in done.stdout
    assert (folder / "deviation.png").exists()
