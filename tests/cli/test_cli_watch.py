"""quests-md watch --config: a replay with every key of a live run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from click.testing import CliRunner
from limits import wait_until
from watched import CANDIDATE, COVERED, HALTING, atoms_of, build_index

from quests_md import Index, Session, cli, read_run
from quests_md.config import RunConfig
from quests_md.hosts.replay import replay
from quests_md.sources import read_frames

SCALES = [COVERED] * 5 + [CANDIDATE, CANDIDATE + 0.01, CANDIDATE] + [COVERED] * 4 + [CANDIDATE] * 3 + [COVERED] * 3
KEYS = {
    "index": "cu.qindex",
    "select": 2.0,
    "halt": 30.0,
    "every": 2,
    "consecutive": 1,
    "history": 2,
    "after": 1,
    "budget": 2,
    "cutout": {"radius": 2.0, "shape": "cluster"},
    "values": "flagged",
    "implausible": "continue",
    "output": "uq",
}
OF_LAMMPS = {"elements": ["Cu"], "skin": 1.0, "check_masses": False, "restart_file": "halt.restart"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with an index and a trajectory that leaves it twice."""
    folder = tmp_path_factory.mktemp("parts")
    build_index().save(folder / "cu.qindex")
    frames = [atoms_of(scale, seed) for seed, scale in enumerate(SCALES)]
    for step, atoms in enumerate(frames):
        atoms.info.update(step=step, time=0.002 * step)
    ase.io.write(folder / "md.extxyz", frames)
    halting = atoms_of(HALTING, 50)
    halting.info.update(step=len(SCALES), time=0.1)
    ase.io.write(folder / "halts.extxyz", [*frames, halting])
    return folder


@pytest.fixture
def place(parts, tmp_path, monkeypatch):
    """Work in a folder of its own."""
    for path in parts.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(keys=KEYS, name="quests.toml", **more):
    lines = []
    for key, value in {**keys, **more}.items():
        if isinstance(value, dict):
            value = "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + " }"
        else:
            value = json.dumps(value)
        lines.append(f"{key} = {value}")
    Path(name).write_text("\n".join(lines) + "\n")


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.main, ("watch", *arguments))
    assert result.exit_code == code, result.output + result.stderr
    return result


def test_it_is_the_run_that_a_session_of_that_file_makes(place):
    write(**OF_LAMMPS)
    command = [sys.executable, "-m", "quests_md.cli", "watch", "md.extxyz", "--config", "quests.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr  # keys of LAMMPS that change nothing are passed over
    config = RunConfig.make({**KEYS, "output": "live"})
    with Session.from_config(config, index=Index.open("cu.qindex")) as session:
        for _ in replay(session, read_frames("md.extxyz")):
            pass
    found, live = read_run("uq"), read_run("live")
    assert found.rows["step"].tolist() == list(range(0, len(SCALES), 2))
    for name in set(found.rows.dtype.names) - {"seconds"}:
        np.testing.assert_array_equal(found.rows[name], live.rows[name])
    assert found.events == live.events != []
    for name in ("candidates", "cutouts", "history"):
        content = Path("uq", f"{name}.extxyz").read_bytes()
        assert content == Path("live", f"{name}.extxyz").read_bytes() != b""
    for key in ("every", "consecutive", "history", "after", "budget", "cutout", "values", "implausible"):
        assert found.about[key] == KEYS[key]
    assert (found.about["host"], found.status) == ("replay", "finished")


def test_options_replace_keys_of_the_file(place):
    write()
    options = ("--select", "1e8", "--halt", "Cu=1e9", "--every", "3", "-o", "other", "--values", "exact")
    run("md.extxyz", "--config", "quests.toml", *options)
    told = read_run("other").about
    assert (told["select"], told["halt"], told["every"], told["values"]) == (1e8, {"Cu": 1e9}, 3, "exact")
    assert (told["history"], told["consecutive"]) == (2, 1)  # an option's default replaces nothing
    assert not Path("uq").exists()


def test_thresholds_may_come_from_either(place):
    write({"index": "cu.qindex", "select": 2.0})
    run("md.extxyz", "--config", "quests.toml", "--halt", "1e9")
    missing = run("md.extxyz", "--index", "cu.qindex", "--select", "1", code=2).stderr
    assert "Missing option '--halt': give it, or a quests.toml with --config" in missing
    assert (
        "quests.toml with --output: halt: field required"
        in run("md.extxyz", "--config", "quests.toml", "-o", "b", code=1).stderr
    )


@pytest.mark.parametrize(
    ("more", "options", "says"),
    [
        ({"evry": 2}, (), "quests.toml: unknown key 'evry'; did you mean 'every'?"),
        ({"every": 0}, (), "quests.toml: every: input should be greater than 0"),
        ({"every": 0}, ("-o", "b"), "quests.toml with --output: every: "),
        ({"select": 40.0}, (), "select = 40.0 lies above halt = 30.0"),
        ({"cutout": {"radius": -1.0}}, (), "quests.toml: cutout: radius must be a length"),
        ({"resume": True}, ("--overwrite",), "resume and overwrite exclude each other"),
    ],
)
def test_what_is_wrong_is_one_line(place, more, options, says):
    write(**more)
    said = run("md.extxyz", "--config", "quests.toml", *options, code=1).stderr
    assert said.startswith("quests-md: error: ")
    assert said.count("\n") == 1
    assert says in said


def test_no_such_file(place):
    assert "none.toml: cannot be read" in run("md.extxyz", "--config", "none.toml", code=1).stderr


def test_what_a_replay_cannot_do_is_said(place):
    write(group="mobile", length_unit=3.4)
    said = run("md.extxyz", "--config", "quests.toml").stderr
    assert "warning: quests.toml: group = 'mobile': a trajectory has no groups, so all atoms of md.extxyz are" in said
    assert "warning: quests.toml: length_unit = 3.4 is for LAMMPS: positions in md.extxyz are taken as Å" in said
    assert set(read_run("uq").rows["n"]) == {32}


def test_the_reference_of_the_file_can_be_replaced(place):
    live = {"reference": "live", "span": 8, "skip": 1, "select": 1e8, "halt": 1e9}
    write(live, "live.toml", bandwidth=0.03)
    run("md.extxyz", "--config", "live.toml", "--reference", "index", "--index", "cu.qindex", "-o", "a")
    assert (read_run("a").about["reference"], len(read_run("a").rows)) == ("index", len(SCALES))
    write(every=1)
    said = run("md.extxyz", "--config", "quests.toml", "--reference", "live", "--span", "100", "-o", "b").stderr
    assert "md.extxyz has ended while the reference was learning" in said
    assert (read_run("b").about["reference"], read_run("b").about["budget"]) == ("live", 2)


def resume(folder, **keys):
    """Replay the whole in a folder, and again in two parts, which gives the same run: return both history.extxyz."""
    write(resume=True, **keys)
    run("md.extxyz", "--config", "quests.toml", "-o", "whole")
    assert "resumes" not in run("md.extxyz@:9", "--config", "quests.toml").stdout
    assert "resumes run 1 after step 8: 5 evaluations" in run("md.extxyz", "--config", "quests.toml").stdout
    whole, resumed = read_run(folder / "whole"), read_run(folder / "uq")
    for name in set(whole.rows.dtype.names) - {"seconds"}:
        np.testing.assert_array_equal(whole.rows[name], resumed.rows[name])
    assert whole.events == resumed.events
    for name in ("candidates.extxyz", "cutouts.extxyz"):
        assert (folder / "uq" / name).read_bytes() == (folder / "whole" / name).read_bytes() != b""
    return [folder / name / "history.extxyz" for name in ("whole", "uq")]


def test_resuming_a_replay_gives_the_run_that_went_through(place):
    whole, resumed = resume(place, values="exact", precision="double")
    assert whole.read_bytes() == resumed.read_bytes() != b""


def test_resuming_a_replay_with_bounds_gives_the_same_decisions(place):
    """Bounds depend on what the search remembers, and a resumed run remembers nothing: all but these is the same."""
    histories = [ase.io.read(path, ":") for path in resume(place, values="flagged")]
    index, n_bounded = Index.open("cu.qindex"), 0
    for one, other in zip(*histories, strict=True):
        assert one.info == other.info
        np.testing.assert_array_equal(one.positions, other.positions)
        exact = index.delta_entropy(one)
        for bounds in (one.arrays["dH"], other.arrays["dH"]):
            assert np.all(bounds >= exact - 1e-10)
            np.testing.assert_array_equal(bounds > KEYS["select"], exact > KEYS["select"])
            assert bounds.max() == pytest.approx(exact.max(), rel=0, abs=1e-10)
            n_bounded += np.count_nonzero(bounds > exact + 1e-6)
    assert n_bounded


def test_commands_are_started(place):
    write(on_select=["sh", "-c", "echo {step} >> selected"], on_event=["sh", "-c", "echo {event} >> events"])
    write(on_halt=["sh", "-c", "echo {step} >> halted"], keys=KEYS | {"every": 1}, name="halts.toml")
    run("md.extxyz", "--config", "quests.toml")
    run("halts.extxyz", "--config", "halts.toml", "-o", "b", code=3)
    wanted = {"events": 2 * len(read_run("uq").events), "halted": 1}

    def are_done():
        return all(Path(name).exists() and Path(name).read_text().count("\n") == n for name, n in wanted.items())

    wait_until(are_done, "not all commands have run")
    steps = {int(line) for line in Path("selected").read_text().split()}
    assert steps >= {atoms.info["step"] for atoms in read_run("uq").candidates()}
    assert Path("halted").read_text() == f"{len(SCALES)}\n"


def test_a_wall_time_ends_a_replay(place):
    write(wall_time=1e-6)
    run("md.extxyz", "--config", "quests.toml", code=3)
    run_of = read_run("uq")
    assert (run_of.status, len(run_of.rows)) == ("halted", 1)


def test_on_error_warn_goes_on_unwatched(place):
    broken = atoms_of(COVERED)
    broken.positions[0] = np.nan
    broken.info.update(step=4)
    ase.io.write("broken.traj", [atoms_of(COVERED), broken])
    write(on_error="warn", implausible="stop")
    assert "watching failed" in run("broken.traj", "--config", "quests.toml", code=1).stderr
    assert read_run("uq").status == "failed"


@pytest.mark.parametrize("key", ["overwrite", "resume"])
def test_the_folder_of_the_live_run_is_spared(place, key):
    """The file of a live run names its folder, and may let it be replaced."""
    write(**{key: True})
    with Session.from_config(RunConfig.read("quests.toml"), host="lammps"):
        pass
    before = Path("uq/run.json").read_bytes()
    said = run("md.extxyz", "--config", "quests.toml", code=1).stderr
    assert "uq holds a live run (host: lammps)" in said
    assert "with -o" in said
    assert Path("uq/run.json").read_bytes() == before
    run("md.extxyz", "--config", "quests.toml", "-o", "again")
    run("md.extxyz", "--config", "quests.toml", "-o", "again")
    run("md.extxyz", "--config", "quests.toml", "-o", "uq")  # asked for
