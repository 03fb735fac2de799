"""learn.toml: what is wrong in it is said with the nearest right key, its table and its file."""

from __future__ import annotations

import json
import re

import pytest
from loops import config, settings, write_frames
from paths import DOCS

from quests_md.errors import ConfigError, OutputError
from quests_md.learning import LearnConfig
from quests_md.learning._loop_folder import State
from quests_md.learning._settings import MONITOR, ExploreTable, IndexTable, OracleTable, StopTable


def without(values, *path):
    *tables, key = path
    of = values
    for table in tables:
        of = of[table]
    del of[key]
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": 1}, r"learn.toml: unknown key 'sead'; did you mean 'seed'\?"),
        ({"stop": {"generation": 3}}, r"learn.toml: \[stop\]: unknown key 'generation'; did you mean 'generations'\?"),
        ({"stop": {"covered": 1.5}}, r"\[stop\]: covered: input should be less than or equal to 1, not 1.5"),
        ({"stop": {"failed": 1.0}}, r"\[stop\]: failed: input should be less than 1"),
        ({"index": {"cutof": 4.0}}, r"\[index\]: unknown key 'cutof'; did you mean 'cutoff'\?"),
        ({"index": {"bandwidth": -1.0}}, r"\[index\]: bandwidth must be a positive number"),
        ({"oracle": {"worker": 2}}, r"\[oracle\]: unknown key 'worker'; did you mean 'workers'\?"),
        ({"oracle": {"executor": "slurm"}}, r"\[oracle\]: executor: input should be 'local', 'mpi' or 'dask'"),
        ({"explore": {"temperature": []}}, r"\[explore\]: temperature: .*at least 1 item"),
        ({"explore": {"temperature": [900, 900.0]}}, r"\[explore\]: temperature and pressure: 900K is there twice"),
        ({"explore": {"temperature": 0}}, r"\[explore\]: temperature.0: input should be greater than 0, not 0"),
        ({"explore": {"tim": 1.0}}, r"\[explore\]: unknown key 'tim'; did you mean 'time'\?"),
        ({"trainer": {"kind": "pot"}}, r"\[trainer\]: .*kind must be one of 'pod', 'command', not 'pot'"),
        ({"monitor": {"selct": 1.0}}, r"\[monitor\]: unknown key 'selct'; did you mean 'select'\?"),
        ({"monitor": {"every": 0}}, r"\[monitor\]: every: input should be greater than 0, not 0"),
        ({"monitor": {"output": "uq"}}, r"\[monitor\]: output is not for a loop, which sets it itself"),
        ({"monitor": {"select": {"force_error": 0.3}}}, r"\[monitor\]: select: the indexes of a loop have no bound"),
        ({"monitor": {"budget": 3}}, r"\[monitor\]: budget needs novelty = true"),  # which these settings have not
        ({"monitor": 3}, r"monitor must be a table, \[monitor\], not 3"),
        ({"training": []}, r"learn.toml: training: .*at least 1 item"),
        ({"budget": 2.5}, r"learn.toml: budget: input should be a valid integer, not 2.5"),
        ({"select_by": "force"}, r"learn.toml: select_by: input should be 'dH', 'error' or 'both', not 'force'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        LearnConfig.make(settings(tmp_path, **changes), where="learn.toml")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("training",), "learn.toml: training: field required"),
        (("stop", "force_error"), r"learn.toml: \[stop\]: force_error: field required"),
        (("explore",), r"learn.toml: \[explore\]: start: field required"),
        (("monitor", "halt"), r"learn.toml: \[monitor\]: halt: field required"),
        (("trainer",), r"learn.toml: \[trainer\]: .*kind must be one of"),
    ],
)
def test_what_is_missing_is_said(tmp_path, path, message):
    with pytest.raises(ConfigError, match=message):
        LearnConfig.make(without(settings(tmp_path), *path), where="learn.toml")


def test_the_example_of_the_manual_is_right(tmp_path):
    (example,) = re.findall(r"^```toml\n(training = .*?)^```$", (DOCS / "learning.md").read_text("utf-8"), re.M | re.S)
    path = tmp_path / "learn.toml"
    path.write_text(example)
    read = LearnConfig.read(path)
    assert read.explore.temperature == (900.0, 1500.0, 2100.0)
    assert read.training == ("crystal.xyz",)
    assert read.oracle.oracle().calculator == "tblite.ase:TBLite"


def test_every_key_is_in_the_manual():
    text = (DOCS / "learning.md").read_text("utf-8")
    rows = "".join(line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `"))
    tables = [IndexTable, OracleTable, ExploreTable, StopTable]
    keys = {key for model in tables for key in model.model_fields}
    keys |= set(LearnConfig.model_fields) - {"index", "oracle", "trainer", "explore", "monitor", "stop"}
    assert sorted(key for key in keys if f"`{key}`" not in rows) == []
    assert sorted(key for key in MONITOR if f"`{key}`" not in text) == []


def test_every_default_is_that_of_the_manual():
    text = (DOCS / "learning.md").read_text("utf-8")
    for model in (IndexTable, StopTable):
        for key, field in model.model_fields.items():
            row = next(
                line for line in text.splitlines() if line.startswith("| `") and f"`{key}`" in line.split("|")[1]
            )
            if isinstance(field.default, (int, float)):
                assert f"{field.default:g}" in row.split("|")[3], key


# -- going on with a folder --------------------------------------------------------------------------------------------


def opened(folder, **changes):
    (folder / "out").mkdir(exist_ok=True)
    state = State.open(folder / "out", config(folder, **changes))
    state.save(thresholds={})
    return state


def test_before_anything_is_settled_a_setting_may_be_set_right(tmp_path):
    (tmp_path / "out").mkdir()
    State.open(tmp_path / "out", config(tmp_path))
    assert State.open(tmp_path / "out", config(tmp_path, seed=6)).settings["seed"] == 6


def test_a_setup_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"\[explore\]: setup: .*no.lammps: No such file"):
        opened(tmp_path, explore={"setup": str(tmp_path / "no.lammps")})


def test_a_number_is_a_list_of_one(tmp_path):
    explore = config(tmp_path, explore={"temperature": 900, "pressure": 1.5}).explore
    assert (explore.temperature, explore.pressure) == ((900.0,), (1.5,))


def test_explorations_propose_all_that_they_find_unless_they_have_a_budget(tmp_path):
    given = settings(tmp_path)
    del given["monitor"]["consecutive"], given["monitor"]["novelty"]
    assert LearnConfig.make(given).monitor == {**given["monitor"], "consecutive": 1, "novelty": False}
    given["monitor"] |= {"budget": 5, "consecutive": 2}
    assert LearnConfig.make(given).monitor == {**given["monitor"], "consecutive": 2, "novelty": True}


def test_a_setting_that_decides_is_refused_with_what_changed(tmp_path):
    opened(tmp_path)
    with pytest.raises(ConfigError, match=r"seed was 5 and is 6.*choose another output"):
        opened(tmp_path, seed=6)
    with pytest.raises(ConfigError, match=r"explore.temperature was \[300.0, 900.0\] and is \[300.0\]"):
        opened(tmp_path, explore={"temperature": [300.0]})
    with pytest.raises(ConfigError, match=r"monitor\.after was not given and is 2"):
        opened(tmp_path, monitor={"after": 2})


def test_other_contents_of_a_file_are_refused(tmp_path):
    opened(tmp_path)
    (tmp_path / "start.xyz").write_text((tmp_path / "held_out.xyz").read_text())
    with pytest.raises(ConfigError, match=r"explore.start \(files\) was"):
        opened(tmp_path)


def test_limits_and_where_things_run_may_change(tmp_path):
    opened(tmp_path)
    stop = {"generations": 9, "labels": 100, "force_error": 0.01, "covered": 1.0, "failed": 0.1}
    more = {
        "oracle": {"workers": 4, "wall_time": 9.0, "tries": 1},
        "explore": {"workers": 2},
        "trainer": {"timeout": 9.0},
    }
    assert opened(tmp_path, stop=stop, monitor={"threads": 2}, **more).stop.model_dump() == stop


def test_a_file_may_be_elsewhere(tmp_path):
    opened(tmp_path)
    (tmp_path / "start.xyz").rename(tmp_path / "moved.xyz")
    opened(tmp_path, explore={"start": str(tmp_path / "moved.xyz")})


def test_a_folder_of_something_else_is_refused(tmp_path):
    write_frames(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"holds thesis.tex but no learning.json: choose another output"):
        opened(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"format": 2}', "[]"])
def test_a_damaged_state_is_refused(tmp_path, content):
    opened(tmp_path)
    (tmp_path / "out" / "learning.json").write_text(content)
    with pytest.raises(OutputError, match=r"learning\.json: not"):
        opened(tmp_path)


def test_a_loop_that_was_begun_before_select_by_goes_on_by_dH_alone(tmp_path):
    opened(tmp_path)
    path = tmp_path / "out" / "learning.json"
    assert "select_by" not in json.loads(path.read_text())["settings"]
    State.open(tmp_path / "out", config(tmp_path, select_by="dH"))
    with pytest.raises(ConfigError, match='select_by was not given and is "error"'):
        State.open(tmp_path / "out", config(tmp_path, select_by="error"))
