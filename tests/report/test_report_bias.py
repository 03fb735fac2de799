"""What the page of a steered run says of its bias."""

from __future__ import annotations

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT

from quests_md import Index, Monitor, Session, read_run
from quests_md.hosts.ase import BiasedCalculator, MonitoredCalculator
from quests_md.report import run_page


def copper(seed, scale=0.08):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    return atoms


def run_in(folder, bias):
    index = Index.build([copper(seed) for seed in range(5)], bandwidth=0.03, threads=1)
    with Session(Monitor(index, select=5.0, halt=60.0, threads=1), folder, bias=bias) as session:
        calculator = (BiasedCalculator if bias else MonitoredCalculator)(EMT(), session)
        for step, scale in enumerate(np.linspace(0.08, 0.14, 4)):
            calculator.calculate(copper(50 + step, scale), ["energy", "forces"])


def test_the_page_of_a_steered_run_tells_of_its_bias(tmp_path):
    run_in(tmp_path / "uq", {"tau": 0.02, "ceiling": 50.0, "floor": -20.0})
    rows, page = read_run(tmp_path / "uq").rows, run_page(tmp_path / "uq")
    assert rows["bias_force"].max() > 0
    section = page.partition("The bias</h2>")[2].partition("<h2")[0]
    for text in ("no equilibrium", f"{rows['bias_force'].max():.3g} eV/Å", "0.02 eV per nat", "ceiling = 50.0", "<svg"):
        assert text in section, text


def test_a_run_without_a_bias_has_no_such_section(tmp_path):
    run_in(tmp_path / "uq", None)
    assert "The bias" not in run_page(tmp_path / "uq")
