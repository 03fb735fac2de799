"""What a session writes of events, of the way into them, and of broken frames; what it keeps; whom it calls."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import ranks
from ase.build import bulk
from loose import Loose, pairs
from watched import frames_of, names_of, rows_of, run_of, session_of, steps_of

from quests_md import Frame, Index
from quests_md.errors import InputError, MonitorError
from quests_md.monitor import Band, Event

SELECT, HALT = 5.0, 50.0
DH = np.array([0.0, 4.0, 6.0, 9.0, 60.0, 7.0])
BROKEN = "broken"


def frame(kind, step, ids=(7, 3)):
    made = pairs([0 if kind == BROKEN else kind, 0], list(ids), step, time=0.25 * step)
    if kind == BROKEN:
        made.positions[0] = np.nan
    return made


def watch(folder, kinds, **options):
    """Observe frames whose worst atom, of id 7, has the environment that `kinds` says; return the session."""
    options = {"select": SELECT, "halt": HALT, "min_distance": 0.0} | options
    with session_of(Loose(DH), folder, **options) as session:
        for step, kind in enumerate(kinds):
            session.observe(frame(kind, step))
    return session


def events_of(folder):
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- events ----------------------------------------------------------------------------------------------------------


def test_a_line_for_each_event(folder):
    watch(folder, [0, 2, 3, 1, 0, 2, 0, 0, 3], consecutive=1)
    first, second, third = events_of(folder)
    assert first == {
        "event": 1, "run": 1, "start": 1, "start_time": 0.25, "end": 2, "end_time": 0.5, "worst": 2, "max": 9.0,
        "max_id": 7, "n_frames": 2, "over": True, "n_atoms": 1, "atoms": [7],
    }  # fmt: skip
    assert (second["event"], second["start"], second["over"]) == (2, 5, True)
    assert (third["event"], third["start"], third["over"]) == (3, 8, False)  # it went on when the run ended
    assert [row["event"] for row in rows_of(folder)] == ["0", "1", "1", "1", "0", "2", "2", "0", "3"]
    assert run_of(folder)["events"] == 3
    assert [atoms.info["event"] for atoms in frames_of(folder)] == [1, 1, 2, 3]


def test_an_event_that_halts_has_its_line(folder):
    watch(folder, [0, 2, 4])
    (event,) = events_of(folder)
    assert (event["start"], event["worst"], event["max"], event["over"]) == (1, 2, 60.0, False)


@pytest.mark.parametrize("size", [2, 3])
def test_an_event_has_the_atoms_of_all_ranks(folder, size):
    def work(comm):
        options = {"select": SELECT, "halt": HALT, "min_distance": 0.0, "comm": comm}
        with session_of(Loose(DH), folder, **options) as session:
            for step, high in enumerate([[], [11, 14], [12, 14], []]):
                mine = 10 + np.arange(comm.rank, 6, size)
                session.observe(pairs(np.where(np.isin(mine, high), 2, 0), mine, step))

    assert ranks.run(size, work) == [None] * size
    (event,) = events_of(folder)
    assert (event["atoms"], event["n_atoms"]) == ([11, 12, 14], 3)


# -- history ---------------------------------------------------------------------------------------------------------


def test_the_way_into_an_event_is_written(folder):
    watch(folder, [0, 1, 0, 0, 1, 2, 0, 0, 0, 0], history=3, after=2)
    assert steps_of(folder, "history") == [2, 3, 4, 5, 6, 7]
    assert [atoms.info["event"] for atoms in frames_of(folder, "history")] == [1] * 6
    assert [atoms.info["dH_max"] for atoms in frames_of(folder, "history")] == [0, 0, 4, 6, 0, 0]
    assert steps_of(folder) == [5]


def test_frames_of_two_events_are_written_once(folder):
    watch(folder, [0, 0, 2, 0, 2, 0, 0, 0, 0], history=2, after=3)
    assert steps_of(folder, "history") == [0, 1, 2, 3, 4, 5, 6, 7]


def test_history_at_the_beginning_and_at_the_end_of_a_run(folder):
    watch(folder, [2, 0], history=5, after=5)
    assert steps_of(folder, "history") == [0, 1]
    assert watch(folder.parent / "none", [0, 2, 0]).n_saved == 1
    assert "history.extxyz" not in names_of(folder.parent / "none")


def test_frames_in_the_history_are_as_they_were(folder):
    """The memory of frames is used again; what is written is what was evaluated."""
    watch(folder, [1, 0, 1, 0, 1, 0, 1, 3], history=3)
    kinds = [1, 0, 1, 3]
    for atoms, kind, step in zip(frames_of(folder, "history"), kinds, (4, 5, 6, 7), strict=True):
        expected = frame(kind, step)
        order = np.argsort(expected.ids[: expected.n_local])
        np.testing.assert_array_equal(atoms.positions, expected.positions[: expected.n_local][order])
        np.testing.assert_allclose(atoms.arrays["dH"], DH[[kind, 0]][order], atol=1e-4)


def test_debounced_events_show_what_led_to_them(folder):
    watch(folder, [0, 2, 0, 2, 2, 2, 0], history=4, consecutive=3)
    assert steps_of(folder, "history") == [1, 2, 3, 4, 5]
    assert steps_of(folder) == [5]


# -- implausible frames ----------------------------------------------------------------------------------------------


def fail(folder, kinds):
    """Watch frames of which the last is broken; return the session."""
    session = session_of(Loose(DH), folder, select=SELECT, halt=HALT, min_distance=0.0)
    for step, kind in enumerate(kinds[:-1]):
        session.observe(frame(kind, step))
    with pytest.raises(MonitorError, match=f"watching failed at step {len(kinds) - 1}: .* not finite"):
        session.observe(frame(BROKEN, len(kinds) - 1))
    assert session.status == run_of(folder)["status"] == "failed"
    return session


def test_a_broken_frame_ends_the_run_and_the_one_before_is_proposed(folder):
    session = fail(folder, [0, 1, BROKEN])
    assert session.n_saved == 1
    (broken,), (proposed,) = frames_of(folder, "implausible"), frames_of(folder)
    assert (broken.info["step"], broken.info["band"]) == (2, "implausible")
    assert "not finite" in broken.info["reason"]
    assert (proposed.info["step"], proposed.info["band"]) == (1, "covered")
    assert proposed.info["reason"] == f"the last before {broken.info['reason']}"
    assert [row["band"] for row in rows_of(folder)] == ["covered", "covered", "implausible"]


def test_broken_frames_that_follow_each_other_are_written_once(folder):
    session = watch(folder, [0, BROKEN, BROKEN, BROKEN, 0, BROKEN], implausible="continue")
    assert session.status == "finished"
    assert steps_of(folder, "implausible") == [1, 5]
    assert steps_of(folder) == [0, 4]
    assert [row["band"] for row in rows_of(folder)].count("implausible") == 4


def test_a_frame_that_was_saved_is_not_proposed_again(folder):
    fail(folder, [0, 2, BROKEN])
    assert steps_of(folder) == [1]


def test_a_run_that_begins_broken_has_nothing_to_propose(folder):
    assert fail(folder, [BROKEN]).n_saved == 0
    assert steps_of(folder, "implausible") == [0]


# -- novelty and budget ----------------------------------------------------------------------------------------------


def test_copies_of_a_kept_frame_are_not_kept(folder):
    session = watch(folder, [2, 2, 2, 0, 3, 3, 2, 0, 3], novelty=True)
    assert steps_of(folder) == [0, 4]  # the last event is a copy of the second
    assert (session.n_flagged, session.n_saved) == (7, 2)
    novelty = [float(row["novelty"]) for row in rows_of(folder)]
    assert novelty[0] == pytest.approx(6.0)
    assert novelty[1] < SELECT
    assert [row["max"] for row in rows_of(folder)][1] == rows_of(folder)[0]["max"]  # dH knows nothing of it


def test_the_frame_that_halts_is_kept_though_it_is_a_copy(folder):
    with session_of(Loose(DH), folder, select=SELECT, halt=HALT, min_distance=0.0, novelty=True) as session:
        session.observe(frame(4, 0))
        session.acknowledge()
        session.observe(frame(4, 1))
    assert steps_of(folder) == [0, 1]


def test_a_full_budget_lets_the_least_informative_go(folder):
    with session_of(Loose(DH), folder, select=3.0, halt=HALT, min_distance=0.0, novelty=True, budget=1) as session:
        session.observe(pairs([1, 0, 0, 0], [7, 3, 5, 9], 0))
        session.observe(pairs([2, 3, 5, 0], [7, 3, 5, 9], 1))  # three new environments
    assert steps_of(folder) == [1]
    assert session.n_saved == 1
    (kept,) = frames_of(folder)
    np.testing.assert_array_equal(kept.arrays["dH"], [9.0, 7.0, 6.0, 0.0])


def test_a_budget_needs_novelty(folder):
    with pytest.raises(InputError, match="budget needs novelty"):
        watch(folder, [], novelty=False, budget=3)


# -- who is called ---------------------------------------------------------------------------------------------------


def test_functions_are_called_with_what_happened(folder):
    calls = []
    watch(
        folder,
        [0, 2, 0, 4],
        on_select=lambda whole, decision: calls.append(("select", whole.step, len(whole.positions), decision.band)),
        on_halt=lambda whole, decision: calls.append(("halt", whole.step, decision.stop)),
        on_event=lambda event: calls.append(("event", event.number, event.over, isinstance(event, Event))),
    )
    assert calls == [
        ("select", 1, 2, Band.CANDIDATE),
        ("event", 1, False, True),
        ("event", 1, True, True),
        ("select", 3, 2, Band.HALT),
        ("event", 2, False, True),
        ("halt", 3, True),
    ]


@pytest.mark.parametrize("name", ["on_select", "on_halt", "on_event"])
def test_what_a_function_raises_ends_the_watching_on_all_ranks(folder, name):
    def fail(*_):
        raise ZeroDivisionError("mine")

    def work(comm):
        options = {"select": SELECT, "halt": HALT, "min_distance": 0.0, "comm": comm, name: fail}
        session = session_of(Loose(DH), folder, **options)
        session.observe(pairs([4], [comm.rank]))

    results = ranks.run(2, work)
    assert [type(result) for result in results] == [MonitorError] * 2
    assert all(f"{name} failed: ZeroDivisionError: mine" in str(result) for result in results)
    assert run_of(folder)["status"] in ("failed", "halted")
    assert steps_of(folder) == [0]


def test_a_command_is_started_with_its_fields(folder):
    code = "import sys; print(*sys.argv[1:])"
    command = [sys.executable, "-c", code, "{output}", "{run} {step} {event} {max:.1f}"]
    with session_of(Loose(DH), folder, select=SELECT, halt=HALT, min_distance=0.0, on_select=command) as session:
        session.observe(frame(0, 0))
        session.observe(frame(2, 1))
        session._commands.wait()
    assert (folder / "commands.log").read_text() == f"{folder} 1 1 1 6.0\n"


def test_a_command_that_fails_is_told_at_the_end(folder, capsys):
    with session_of(
        Loose(DH), folder, select=SELECT, halt=HALT, min_distance=0.0, on_select=[sys.executable, "-c", "exit(3)"]
    ) as session:
        session.observe(frame(2, 0))
        session._commands.wait()
    assert "quests_md: on_select: exit code 3" in capsys.readouterr().err


def test_a_command_that_cannot_be_started_ends_the_watching(folder):
    with pytest.raises(MonitorError, match=r"on_select failed: FileNotFoundError: .*no_such_program"):
        watch(folder, [2], on_select=["no_such_program"])


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("sh label.sh", "on_select must be a function or a list of arguments"),
        ([], "on_select must be a function or a list of arguments"),
        (["sh", 3], "on_select must be a function or a list of arguments"),
        (["sh", "{frame}"], r"on_select: '\{frame\}': the fields are \{output\}, \{run\}, \{step\}"),
    ],
)
def test_commands_that_cannot_be_one(folder, hook, message):
    with pytest.raises(InputError, match=message):
        watch(folder, [], on_select=hook)


# -- what it says ----------------------------------------------------------------------------------------------------


def test_thresholds_are_said_when_they_become_numbers(folder, capsys):
    session = watch(folder, [0, 2], select={"Si": SELECT}, halt=math.inf)
    assert "quests_md: select = 5 (Si), halt = inf\n" in capsys.readouterr().out
    run = run_of(folder)
    assert run["select"] == {"Si": 5.0}
    assert run["thresholds"] == {"select": {"Si": 5.0}, "halt": {"": "inf"}}
    assert session.summary().startswith("quests_md: finished; 2 evaluations of 2 atoms, 1 kept of 1 flagged frames in")


# -- cut-outs --------------------------------------------------------------------------------------------------------


def test_candidates_are_cut_out_and_cut_outs_go_with_their_frame(tmp_path, large_cell):
    index, frames = large_cell
    options = {"select": 1.0, "halt": math.inf, "novelty": True, "budget": 1, "min_distance": 0.0}
    options["cutout"] = {"radius": 2.5, "most": 2}
    with session_of(index, tmp_path / "uq", **options) as session:
        for frame in frames:
            session.observe(frame)
    (kept,) = frames_of(session.output)
    cuts = frames_of(session.output, "cutouts")
    assert [cut.info["step"] for cut in cuts] == [kept.info["step"]] * 2
    for cut in cuts:
        assert len(cut) < len(kept)
        core = cut.arrays["core"]
        np.testing.assert_allclose(index.delta_entropy(cut)[core], cut.arrays["dH"][core], rtol=1e-9)


@pytest.fixture
def large_cell():
    """Return an index of silicon, and frames of 1000 atoms of which one, then five, then none is far off."""

    cells = [bulk("Si", cubic=True) * (2, 2, 2) for _ in range(3)]
    for seed, cell in enumerate(cells):
        cell.rattle(0.03, seed=seed)
    frames = []
    for step, n in enumerate([1, 5, 0]):
        atoms = bulk("Si", cubic=True) * (5, 5, 5)
        atoms.rattle(0.02, seed=step)
        atoms.positions[np.arange(n) * 190] += 0.3 + 0.1 * np.arange(n)[:, None]
        frames.append(Frame.from_atoms(atoms, step))
    return Index.build(cells, bandwidth=0.05, threads=1), frames


@pytest.mark.parametrize(
    ("cutout", "message"),
    [
        ({}, "cutout: give the radius of the core"),
        ({"radius": 4.0, "shap": "cell"}, "cutout: unknown key 'shap'; did you mean 'shape'"),
        ({"radius": "4"}, "cutout: radius cannot be '4'"),
        ({"radius": 4.0, "margin": 3.0}, "cutout: margin = 3.0 Å is less than the descriptor's cutoff, 5.0 Å"),
        ({"radius": 4.0, "passivate": True}, 'cutout: passivate is for shape = "cluster"'),
    ],
)
def test_cut_outs_that_cannot_be(folder, cutout, message):
    with pytest.raises(InputError, match=message):
        watch(folder, [], cutout=cutout)
