"""The kernels on other kinds of processor: certified decisions and blocks that are left out, against float64."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from limits import LIMIT
from paths import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import processors

# Compiling takes minutes; few processors have vectors of 128 bits alone: `python -m benchmarks processors` tries them.
SETTINGS = [setting for setting in processors.SETTINGS if setting != "128 bits"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return what a process for each setting found; all start at once, and each compiles for itself."""
    folder = tmp_path_factory.mktemp("caches")
    settings = list(filter(processors.can_run, SETTINGS))
    # One folder for all of them: none may take the machine code of another.
    started = {setting: processors.start(setting, str(folder)) for setting in settings}
    try:
        ended = {setting: process.communicate(timeout=LIMIT) for setting, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    for setting, process in started.items():
        assert process.returncode == 0, f"{setting}: {process.returncode}\n{ended[setting][1]}"
    return {setting: json.loads(out) for setting, (out, _) in ended.items()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_is_wrong_on_another_processor(setting, results):
    if setting not in results:
        pytest.skip("this processor cannot stand in for that one")
    found = results[setting]
    assert found["bits"] == (0 if setting == "plain loops" else int(setting.split()[0]))
    assert found["decisions"] >= 50_000
    assert found["wrong"] == 0
    for precision in ("single", "double"):
        of = found[precision]
        assert of["left out"] > 5_000
        assert of["too much"] == 0
        assert 0.05 < of["rounding"] <= 1.0
        assert of["error"] <= 1.0


def test_processors_agree(results):
    """To the rounding of double precision, which is not the same on all of them."""
    values = np.array([found["values"] for found in results.values()])
    assert np.ptp(values, axis=0).max(initial=0.0) <= 1e-10 * np.abs(values).max(initial=1.0)
