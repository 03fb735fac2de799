"""values and precision in LAMMPS: other numbers for most atoms, the same decisions."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
from lammps_runs import ATTACH, HOSTS_ONCE, SILICON, configure, dump, ok, rows_of, run_host, run_json, table_of

from quests_md import Index

LARGER = SILICON.replace("0 2 0 2 0 2", "0 4 0 4 0 4")  # 512 atoms: more than the sample


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_flagged_values_and_single_precision_decide_the_same(host, folder):
    select = -7.5
    after = dump("dH.dump", "d_dH", 10) + "run 40\n"
    rows, dH = {}, {}
    for name, mode in {
        "exact": {"precision": "double"},
        "flagged": {"values": "flagged", "precision": "double"},
        "single": {"precision": "single"},
    }.items():
        configure(folder, select=select, every=10, save_every=30, overwrite=True, output="uq", **mode)
        code = f"""
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_string('''{LARGER}''')
watch = attach(lmp, "quests.toml")
lmp.commands_string('''{after}''')
watch.close()
"""
        ok(run_host(host, folder, code, LARGER + ATTACH + after))
        rows[name], dH[name] = rows_of(folder), table_of(folder / "dH.dump", 512)[:, 1]
        assert {key: run_json(folder)[key] for key in ("values", "precision")} == {
            "values": "exact", "precision": "double", **mode,
        }  # fmt: skip
        index = Index.open(folder / "si.qindex")
        for atoms in ase.io.read(folder / "uq" / "candidates.extxyz", index=":"):
            assert atoms.info["values"] == "exact"
            np.testing.assert_allclose(atoms.arrays["dH"], index.delta_entropy(atoms), rtol=0, atol=1e-9)
    assert any(row["saved"] == "1" for row in rows["exact"])
    for name in ("flagged", "single"):
        assert len(rows[name]) == len(rows["exact"])
        for row, exact in zip(rows[name], rows["exact"], strict=True):
            for column in ("step", "max_id", "n", "n_select", "n_halt", "band", "saved"):
                assert row[column] == exact[column], column
            assert float(row["max"]) == pytest.approx(float(exact["max"]), rel=1e-12)
    assert [row["values"] for row in rows["flagged"]] == ["flagged"] * len(rows["exact"])
    assert (dH["flagged"] >= dH["exact"] - 1e-8).all()
    above = dH["exact"] > select
    np.testing.assert_allclose(dH["flagged"][above], dH["exact"][above], rtol=0, atol=1e-8)
    assert (dH["flagged"][~above] <= select).all()
    np.testing.assert_allclose(dH["single"], dH["exact"], rtol=0, atol=1.1e-4)
