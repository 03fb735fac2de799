"""quests.toml: what it says is what the run gets, and mistakes are named."""

from __future__ import annotations

import inspect

import pytest

from quests_md import Monitor, Session
from quests_md.config import RunConfig
from quests_md.errors import ConfigError
from quests_md.hosts.lammps import attach

LEAST = 'index = "si.qindex"\nselect = 5.0\nhalt = 20\n'


def read(tmp_path, text):
    path = tmp_path / "quests.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return RunConfig.read(path)


def test_defaults(tmp_path):
    config = read(tmp_path, LEAST)
    assert (config.index, config.select, config.halt) == ("si.qindex", 5.0, 20.0)
    of_monitor, of_session = (inspect.signature(owner).parameters for owner in (Monitor, Session))
    for parameters, given in ((of_monitor, config.of_monitor()), (of_session, config.of_session())):
        for name in set(given) - {"select", "halt"}:
            assert given[name] == parameters[name].default, name
    assert set(of_monitor) - {"index", "comm"} == set(config.of_monitor())
    assert set(of_session) - {"monitor", "host"} == set(config.of_session())


def test_every_key_is_read(tmp_path):
    given = {
        "reference": "index", "index": "a.qindex", "skip": 0, "span": None, "species": None, "bandwidth": 0.015,
        "describe": None,
        "k": 32, "cutoff": 5.0, "select": -1.5, "halt": {"Si": float("inf")}, "every": 10,
        "min_atoms": 2, "min_fraction": 0.01, "consecutive": 3, "release": -2.0, "novelty": False, "budget": 7,
        "cutout": {"radius": 4.0, "shape": "cluster"}, "bias": {"tau": 0.1, "focus": "worst"},
        "history": 5, "after": 6, "min_distance": 0.5, "implausible": "continue", "on_select": ("sh", "label.sh"),
        "on_halt": ("true",), "on_event": ("true",), "commands_at_once": 3,
        "save_every": 100, "output": "uq", "overwrite": True, "values": "flagged", "precision": "single", "threads": 2,
        "elements": ("Si", "NULL"), "check_masses": False, "group": "mobile", "skin": 2.0,
        "length_unit": 3.405, "resume": "anyway", "on_error": "warn", "wall_time": "23:30:00",
        "restart_file": "halt.restart",
    }  # fmt: skip
    config = read(
        tmp_path,
        """
        index = "a.qindex"
        k = 32
        cutoff = 5
        select = -1.5
        halt = { Si = inf }
        min_atoms = 2
        min_fraction = 0.01
        consecutive = 3
        release = -2.0
        novelty = false
        budget = 7
        cutout = { radius = 4.0, shape = "cluster" }
        bias = { tau = 0.1, focus = "worst" }
        history = 5
        after = 6
        min_distance = 0.5
        implausible = "continue"
        on_select = ["sh", "label.sh"]
        on_halt = ["true"]
        on_event = ["true"]
        commands_at_once = 3
        every = 10
        save_every = 100
        output = "uq"
        overwrite = true
        values = "flagged"
        precision = "single"
        threads = 2
        elements = ["Si", "NULL"]
        check_masses = false
        group = "mobile"
        skin = 2
        length_unit = 3.405
        resume = "anyway"
        on_error = "warn"
        wall_time = "23:30:00"
        restart_file = "halt.restart"
        """,
    )
    assert config.model_dump() == given
    assert set(given) == set(RunConfig.model_fields)


def test_keys_are_keywords():
    keywords = {name for owner in (Monitor, Session) for name in inspect.signature(owner).parameters}
    assert keywords - {"monitor", "comm", "host"} <= set(RunConfig.model_fields)


def test_keys_are_keywords_of_attach():
    """`attach` takes the keys as they are; what it does with them is tested with a real LAMMPS."""
    assert list(inspect.signature(attach).parameters) == ["lmp", "index", "keys"]
    owners = [*inspect.signature(Monitor).parameters, *inspect.signature(Session).parameters]
    assert set(owners) - set(RunConfig.model_fields) == {"monitor", "comm", "host"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stride = 1", r"unknown key 'stride'; the keys are reference, index, k, cutoff, skip, span"),
        ("evrey = 10", r"unknown key 'evrey'; did you mean 'every'\?"),
        ("selekt = 10", r"unknown key 'selekt'; did you mean 'select'\?"),
        ("[quests]\nevery = 1", r"unknown key 'quests'"),
        ("every = 0", r"every: input should be greater than 0, not 0"),
        ("every = 1.5", r"every: input should be a valid integer, not 1.5"),
        ("save_every = true", r"save_every: input should be a valid integer, not True"),
        ("threads = -1", r"threads: .*, not -1"),
        ("resume = 1", r'resume must be true, false or "anyway", not 1'),
        ('resume = "yes"', r'resume must be true, false or "anyway", not \'yes\''),
        ('wall_time = "24h"', r'wall_time must be a number of seconds or a text such as "23:30:00", not \'24h\''),
        ("wall_time = 0", r"wall_time must be a number of seconds .*, not 0"),
        ('on_error = "ignore"', r"on_error: input should be 'stop' or 'warn', not 'ignore'"),
        ("overwrite = 1", r"overwrite: input should be a valid boolean, not 1"),
        ('values = "quick"', r"values: input should be 'exact' or 'flagged', not 'quick'"),
        ('elements = "Si"', r"elements: .*, not 'Si'"),
        ('elements = "Si"', r"elements: input should be a list, not 'Si'"),
        ("elements = [14]", r"elements.0: input should be a valid string, not 14"),
        ("length_unit = 0.0", r"length_unit: .* greater than 0"),
        ("every = = 1", r"not valid TOML: .* \(at line 4"),
        ("every = 1\nevery = 2", r"not valid TOML"),
        (b"\xff\xfe", r"not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    text = text if isinstance(text, bytes) else LEAST + text
    with pytest.raises(ConfigError, match=rf"quests\.toml: {message}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("halt = 1.0\nselect = 1.0", "index: field required"),
        ('index = "a"\nhalt = 1.0', "select: field required"),
        ('index = "a"\nselect = 1.0', "halt: field required"),
        ('index = "a"\nhalt = 1.0\nselect = "5"', r"select must be a number of nats, .*, not '5'"),
        ('index = "a"\nhalt = true\nselect = 5', r"halt must be a number of nats, .*, not True"),
        ("index = 3\nhalt = 1.0\nselect = 5", r"index: input should be a valid string, not 3"),
    ],
)
def test_what_has_no_default_must_be_there(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(("name", "message"), [("no.toml", "No such file"), ("", "Is a directory")])
def test_a_file_that_is_not_there(tmp_path, name, message):
    with pytest.raises(ConfigError, match=f"cannot be read: {message}"):
        RunConfig.read(tmp_path / name)


def test_arguments_are_named_as_such():
    with pytest.raises(ConfigError, match=r"the arguments: unknown key 'evry'; did you mean 'every'\?"):
        RunConfig.make({"index": "a", "select": 1, "halt": 2, "evry": 3})
