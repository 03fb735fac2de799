"""Rates as thresholds of verbs, and what config check, runs and index build say of numbers."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner, Result

from quests_md import Index
from quests_md.cli import main
from quests_md.index import calibrate, resolve_threshold
from quests_md.information import suggest_bandwidth

RATE = {"false_alarm": 0.1}


def rattled(scale: float, seed: int) -> ase.Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    atoms.info.update(step=seed, kind="a" if seed % 2 else "b")
    return atoms


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Run in a folder with an index that is calibrated, one that is not, and a hot trajectory."""
    monkeypatch.chdir(tmp_path)
    made = Index.build([rattled(0.06, seed) for seed in range(40)], bandwidth="auto", threads=1)
    made.save("bare.qindex")
    made.calibration = calibrate(made, threads=1)
    made.save("ref.qindex")
    ase.io.write("md.xyz", [rattled(0.06 + 0.02 * (seed % 5), seed) for seed in range(100, 110)])
    return made


def run(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output + done.stderr
    return done


@pytest.fixture
def nats(index: Index) -> float:
    return resolve_threshold("select", RATE, index, {"Cu": 32})["Cu"]


def test_dh_and_overlap_take_a_rate(index: Index, nats: float) -> None:
    told = run("dh", "md.xyz", "--index", "ref.qindex", "--threshold", "false_alarm=0.1", "-o", "dH.csv").stderr
    assert f"quests-md: --threshold false_alarm=0.1 is {nats:.6g} nats, in a frame of 32 Cu atoms\n" in told
    dH = index.delta_entropy(ase.io.read("md.xyz", ":"))
    row = Path("dH.csv").read_text().splitlines()
    column = row[0].split(",").index(f"above_{nats:g}")
    shares = [float(line.split(",")[column]) for line in row[1:]]
    assert shares == pytest.approx((dH.reshape(10, 32) > nats).mean(axis=1).tolist())
    assert 0.0 < max(shares) < 1.0
    both = ("--threshold", "false_alarm=0.1", "--threshold", "-3")
    run("overlap", "md.xyz", "--index", "ref.qindex", *both, "-o", "o.json")
    found = {row["threshold"]: row["overlap"] for row in json.loads(Path("o.json").read_text())["results"]}
    assert found == {nats: pytest.approx(np.mean(dH < nats)), -3.0: pytest.approx(np.mean(dH < -3.0))}


def test_cutout_and_nuclei_take_a_rate(index: Index, nats: float) -> None:
    for given, name in (("false_alarm=0.1", "rate"), (repr(nats), "number")):
        same = ("md.xyz", "--index", "ref.qindex", "--threshold", given)
        run("cutout", *same, "--radius", "0", "-o", f"{name}.extxyz")
        run("nuclei", *same, "--link", "3", "-o", f"{name}.json")
    assert Path("rate.extxyz").read_bytes() == Path("number.extxyz").read_bytes()
    assert json.loads(Path("rate.json").read_text()) == json.loads(Path("number.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--index", "ref.qindex", "--threshold", "false_alarms=0.1"), 2, "did you mean 'false_alarm'"),
        (("--index", "ref.qindex", "--threshold", "false_alarm=2"), 2, "false_alarm must lie between 0 and 1"),
        (("--index", "ref.qindex", "--threshold", "nan"), 2, "a number of nats, not nan"),
        (("--index", "ref.qindex", "--threshold", "low"), 2, "a number of nats, or KEY=NUMBER"),
        (("--index", "bare.qindex", "--threshold", "false_alarm=0.1"), 1, "quests-md index calibrate bare.qindex"),
        (("--reference", "md.xyz", "--threshold", "false_alarm=0.1"), 1, "needs the calibration of an index"),
        (("--itself", "--threshold", "false_alarm=0.1"), 1, "needs the calibration of an index"),
        (("--index", "ref.qindex", "--threshold", "false_alarm=0.001"), 1, "is not resolved by 40 independent"),
    ],
)  # fmt: skip
def test_a_rate_that_cannot_be_is_an_error(arguments: tuple[str, ...], code: int, says: str) -> None:
    assert says in " ".join(run("dh", "md.xyz", *arguments, code=code).stderr.split())


# -- config check ------------------------------------------------------------------------------------------------------


def check(text: str, *arguments: str) -> Result:
    Path("quests.toml").write_text(text)
    return run("config", "check", *arguments)


def test_config_check_says_what_thresholds_mean(nats: float) -> None:
    text = 'index = "ref.qindex"\nselect = { false_alarm = 0.1 }\nhalt = { false_alarm = 0.1, plus = 10.0 }'
    shown = check(text, "--atoms", "32").stdout
    assert f"  select             {nats:.6g} nats (Cu)\n" in shown
    assert f"  halt               {nats + 10:.6g} nats (Cu)\n" in shown
    assert "    0.098 false alarms per independent frame of 32 Cu atoms\n" in shown
    assert "    3 of 40 left-out frames of the reference above\n" in shown
    assert "    at most 0.024 false alarms per independent frame of 32 Cu atoms\n" in shown
    assert check(text, "--atoms", "32").stderr == ""
    assert "with as many atoms as the reference; --atoms N says it for your run" in check(text).stdout
    known = json.loads(check(text, "--atoms", "16", "--json").stdout)
    assert known["thresholds"]["select"]["counts"] == {"Cu": 16}
    assert known["thresholds"]["select"]["rate"] < 0.1


def test_numbers_of_another_index_are_called_by_their_name() -> None:
    """Thresholds of the readme, on an index on which they would never be reached."""
    told = check('index = "ref.qindex"\nselect = 25.0\nhalt = 80.0')
    assert told.stdout.startswith("quests.toml: right\n")
    for name, number in (("select", "25"), ("halt", "80")):
        assert f"quests-md: warning: {name} = {number} nats lies far outside the calibrated range" in told.stderr
    known = json.loads(check('index = "ref.qindex"\nselect = 25.0\nhalt = 80.0', "--json").stdout)
    assert len(known["warnings"]) == 2
    told = check('index = "bare.qindex"\nselect = 25.0\nhalt = 80.0')
    assert "quests-md: warning: the index has no calibration, so nothing tells what select means" in told.stderr


def test_every_run_begins_with_what_its_thresholds_mean(nats: float) -> None:
    for given, says in (
        (("--select", "false_alarm=0.1", "--halt", "inf"), f"quests_md: select = {nats:.6g} (Cu), halt = inf\n"),
        (("--select", "25", "--halt", "80"), "quests_md: select = 25, halt = 80\n"),
    ):
        shown = run("watch", "md.xyz", "--index", "ref.qindex", *given, "--overwrite").stdout
        assert says in shown
        assert shown.count("quests_md: select: ") == 1
        assert "left-out frames of the reference above" in shown
    assert "quests_md: warning: select = 25 nats lies far outside" in shown
    shown = run("watch", "md.xyz", "--index", "bare.qindex", "--select", "25", "--halt", "80", "--overwrite").stdout
    assert shown.count("has no calibration, so nothing tells what thresholds mean: quests-md index calibrate") == 1


def test_the_template_asks_for_rates() -> None:
    run("config", "init")
    text = Path("quests.toml").read_text()
    assert "\nselect = { false_alarm = 0.01 }\n" in text
    assert "\nhalt = { false_alarm = 0.01, plus = 10.0 }\n" in text


# -- bandwidth ---------------------------------------------------------------------------------------------------------


def test_index_build_and_bandwidth_suggest_one_where_the_volume_tells_none() -> None:
    salt = [bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2) for _ in range(6)]
    for seed, atoms in enumerate(salt):
        atoms.rattle(0.08, seed=seed)
    ase.io.write("salt.xyz", salt)
    told = run("index", "build", "salt.xyz", "--species", "neighbours", "-o", "salt.qindex").stderr
    index = Index.open("salt.qindex")
    frames = np.repeat(np.arange(6), 64)
    suggested = suggest_bandwidth(index.rows, frames[index.order], index.numbers)
    assert f"--bandwidth {suggested:.2g} is how far these environments are from the nearest ones" in told
    given = ("--species", "neighbours", "--bandwidth", f"{suggested:.2g}", "-o", "again.qindex")
    assert "nearest" not in run("index", "build", "salt.xyz", *given).stderr
    assert "nearest" not in run("index", "build", "md.xyz", "-o", "cu.qindex").stderr
    found = run("bandwidth", "salt.xyz", "--species", "neighbours")
    expected = suggest_bandwidth(index.spec.compute(salt), frames)
    assert f"recommended: --bandwidth {expected:.2g}, the nearest one" in found.stderr
    assert f"nearest      {expected:.6g}\n" in found.stdout
