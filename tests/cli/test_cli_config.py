"""quests-md config: a template that holds every key, and a check against an index."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibrations import with_errors
from click.testing import CliRunner
from indexes import silicon_index

from quests_md import Index
from quests_md.cli import main
from quests_md.config import RunConfig, write_template
from quests_md.index import calibrate
from quests_md.toml import tomllib


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silicon_index().save("reference.qindex")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["config", *arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result


def init_with_numbers():
    """Write the template with thresholds in nats in place of rates: the index here has no calibration."""
    run("init")
    text = Path("quests.toml").read_text()
    for name, given, nats in (("select", "{ false_alarm = 0.01 }", 5.0),
                              ("halt", "{ false_alarm = 0.01, plus = 10.0 }", 20.0)):  # fmt: skip
        assert f"\n{name} = {given}\n" in text
        text = text.replace(f"\n{name} = {given}\n", f"\n{name} = {nats}\n")
    Path("quests.toml").write_text(text)


def uncommented(text):
    """Return the template with the defaults and examples as settings."""
    lines = (line.removeprefix("# ") for line in text.splitlines())
    keys = tuple(f"{name} = " for name in RunConfig.model_fields)
    return "\n".join(line for line in lines if line.startswith(keys))


def test_the_template_is_a_configuration_and_holds_every_key():
    assert "quests.toml: written. Set index, select and halt in it" in run("init").stdout
    text = Path("quests.toml").read_text()
    RunConfig.read("quests.toml")
    for name in RunConfig.model_fields:
        assert f"{name} = " in text, name
    every = tomllib.loads(uncommented(text))
    assert set(every) == set(RunConfig.model_fields)


def test_what_the_template_shows_as_defaults_are_the_defaults():
    given = tomllib.loads(uncommented("\n".join(
        line for line in write_template().splitlines() if "an example" not in line
    )))  # fmt: skip
    required = {name for name, field in RunConfig.model_fields.items() if field.is_required()}
    least = {name: given[name] for name in required | {"index"}}
    assert RunConfig.make(given) == RunConfig.make(least)


def test_an_existing_file_is_left_alone():
    Path("quests.toml").write_text("mine")
    assert "quests.toml exists" in run("init", code=1).stderr
    assert Path("quests.toml").read_text() == "mine"
    run("init", "other.toml")


def test_a_configuration_is_checked_against_its_index():
    init_with_numbers()
    shown = run("check").stdout
    assert shown.startswith("quests.toml: right\n")
    assert "reference.qindex: 96 environments of Si" in shown
    assert "  select             5 nats" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('index = "none.qindex"\nselect = 1\nhalt = 2', "none.qindex: no such index"),
        ('index = "reference.qindex"\nselct = 1\nhalt = 2', "unknown key 'selct'; did you mean 'select'"),
        ('index = "reference.qindex"\nselect = 1\nhalt = 2\nk = 16', "was built with k = 32"),
        ('index = "reference.qindex"\nselect = 1\nhalt = 2\nelements = ["Ge"]', "elements: Ge is not in the index"),
        ('index = "reference.qindex"\nselect = { false_alarm = 0.1 }\nhalt = 2', "the index has no calibration"),
        ('index = "reference.qindex"\nselect = { false_alarms = 0.1 }\nhalt = 2', "did you mean 'false_alarm'"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    Path("quests.toml").write_text(text)
    assert message in run("check", code=1).stderr


def test_thresholds_are_compared_as_numbers():
    """A rate is a number only with an index: it may come to less than the other threshold."""
    index = silicon_index()
    index.calibration = calibrate(index)
    index.save("calibrated.qindex")
    text = 'index = "calibrated.qindex"\nselect = {select}\nhalt = {{ false_alarm = 0.5, plus = 1.0 }}\n'
    Path("quests.toml").write_text(text.format(select="{ false_alarm = 0.5 }"))
    assert "quests.toml: right" in run("check").stdout
    Path("quests.toml").write_text(text.format(select=40.0))
    assert "select = 40.0 lies above halt = " in run("check", code=1).stderr


def test_a_force_error_by_local_residuals_is_shown_as_one():
    with_errors(Index.open("reference.qindex")).save("errors.qindex")
    text = 'index = "errors.qindex"\nselect = { force_error = 0.3 }\nhalt = 1e6\nvalues = '
    Path("quests.toml").write_text(text + '"exact"')
    assert "  select             0.3 eV/Å: the bound of each atom; above " in run("check").stdout
    Path("quests.toml").write_text(text + '"flagged"')
    assert 'a force_error as a threshold needs values = "exact"' in run("check", code=1).stderr


def test_a_folder_that_is_taken_is_a_warning():
    init_with_numbers()
    Path("uq").mkdir()
    Path("uq/run.json").write_text("{}")
    assert "warning: uq holds an earlier run" in run("check").stderr


@pytest.mark.parametrize("atoms", ["0", "x", "Ge=10", "Si="])
def test_numbers_of_atoms_that_cannot_be(atoms):
    run("init")
    assert "is neither a number of atoms" in run("check", "--atoms", atoms, code=2).stderr
