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
    command = [sys.executable, "run.py", "--models", "2", "--steps", "150", "--picoseconds", "0.4"]
    command += ["--timed", "20"]
    done = ok(subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False))
    found = json.loads((folder / "found.json").read_text())
    assert len(found["step"]) == 21
    assert np.isfinite(found["dH"]).all()
    assert (np.array(found["deviation"])[1:] > 0).all()  # the first frame is the perfect crystal
    assert run_json(folder)["evaluations"] == 21
    for said in ("rank correlation of dH and deviation, all frames", "all models, deviation", "three frames in a row"):
        assert said in done.stdout
    assert (folder / "deviation.png").exists()
