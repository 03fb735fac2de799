"""quests-md watch --reference live: a trajectory says what in it is new; and quests-md config check."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from calibrations import moving
from click.testing import CliRunner

from quests_md.cli import main
from quests_md.config import RunConfig
from quests_md.errors import ConfigError

LIVE = ("--reference", "live", "--skip", "20", "--span", "300", "--bandwidth", "0.03")


@pytest.fixture(autouse=True)
def trajectory(tmp_path, monkeypatch):
    """Write a run that vibrates, every tenth step; in its last frame an atom has jumped."""
    monkeypatch.chdir(tmp_path)
    frames = [Atoms(f.numbers, f.positions, cell=f.cell, pbc=True) for f in moving(50, 0, memory=0)]
    frames[-1].positions[3] += 0.8
    for i, atoms in enumerate(frames):
        atoms.info.update(step=10 * i, time=0.01 * i)
    ase.io.write("md.xyz", frames)


def run(*arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_watch_says_what_is_new():
    shown = run("watch", "md.xyz", *LIVE, "--select", "false_alarm=0.1", "--halt", "1e6").stdout
    assert "learned 31 frames (496 environments) of steps 20 to 320" in shown
    assert "step 490: candidate" in shown
    assert json.loads(Path("uq/run.json").read_text())["last_step"] == 490


def test_watch_takes_thresholds_by_element():
    run("watch", "md.xyz", *LIVE, "--select", "Si=1e5", "--halt", "Si=1e6,C=5e6", "--bandwidth", "auto")
    written = json.loads(Path("uq/run.json").read_text())
    assert written["halt"] == {"Si": 1e6, "C": 5e6}
    assert written["index"]["bandwidth"] == pytest.approx(0.029, abs=0.001)


def test_watch_says_when_the_trajectory_ends_too_early():
    shown = run("watch", "md.xyz@:20", *LIVE, "--select", "1", "--halt", "2")
    assert "md.xyz@:20 has ended while the reference was learning" in shown.stderr


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--select", "false_alarm"), "a number of nats, or KEY=NUMBER"),
        (("--halt", "Si=a"), "a number of nats, or KEY=NUMBER"),
        (("--bandwidth", "wide"), "'wide' is neither a number nor auto"),
    ],
)
def test_what_cannot_be_an_option_is_a_usage_error(option, says):
    assert says in run("watch", "md.xyz", *LIVE, "--select", "1", "--halt", "2", *option, code=2).stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reference": "live"}, 'reference = "live" needs span, the steps to learn from'),
        ({"reference": "live", "span": 5, "index": "a"}, 'reference = "live" makes an index of its own: leave out'),
        ({"reference": "alive"}, "reference: input should be 'index' or 'live', not 'alive'"),
        ({"index": "a", "span": 5}, 'span is for reference = "live": an index file has its own'),
        ({"index": "a", "skip": 5}, "skip is for reference"),
        ({"index": "a", "species": "ignore"}, "species is for reference"),
        ({"index": "a", "bandwidth": 0.02}, "bandwidth is for reference"),
        ({"reference": "live", "span": 5, "bandwidth": "wide"}, "bandwidth must be a positive number in 1/Å"),
        ({"reference": "live", "span": 0}, "span: input should be greater than 0, not 0"),
        ({}, 'index: field required, or reference = "live"'),
    ],
)
def test_keys_that_do_not_go_together(given, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.make({"select": 1.0, "halt": 2.0, **given})


def test_config_check_knows_a_live_reference():
    Path("quests.toml").write_text('reference = "live"\nspan = 1000\nselect = {false_alarm = 0.1}\nhalt = inf\nk = 1\n')
    assert "k must be a whole number of at least 2" in run("config", "check", code=1).stderr
    text = Path("quests.toml").read_text().replace("k = 1\n", "k = 24\n")
    Path("quests.toml").write_text(text)
    shown = run("config", "check").stdout
    assert "live: what the thresholds come to is known when it has learned" in shown
    assert "  span               1000" in shown
