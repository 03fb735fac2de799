"""What a resumed run takes from films, lessons and rows, where the tests that kill runs everywhere do not look."""

from __future__ import annotations

import shutil

from kill_runs import COVERED, LITTLE, MORE, MUCH, Run, copper_of, differences, left_in
from watched import frames_of, rows_of, steps_of

from quests_md import Frame, Monitor, Session


def test_a_frame_that_one_rank_had_not_kept_is_not_taken_for_whole(index, tmp_path):
    """Killed when it had its row: it is held again when the host shows it once more, and only then."""
    kinds = [COVERED, COVERED, COVERED, COVERED, MUCH, COVERED]
    run = Run(copper_of(range(6), kinds, 2), lambda: index, {}, {"history": 3, "after": 1})
    run.watch(tmp_path / "whole")
    run.watch(tmp_path / "uq", end=4)
    film = tmp_path / "uq" / "resume.film.1"
    film.write_bytes(film.read_bytes()[:-1])
    shutil.copytree(tmp_path / "uq", tmp_path / "other")
    run.watch(tmp_path / "uq", 3, resume=True)
    assert differences(left_in(tmp_path / "uq"), left_in(tmp_path / "whole")) == []
    run.watch(tmp_path / "other", 4, resume=True)
    assert steps_of(tmp_path / "other", "history") == [1, 2, 4, 5]
    assert {len(atoms) for atoms in frames_of(tmp_path / "other", "history")} == {32}


def test_films_of_two_ranks_that_take_turns_at_different_frames_are_in_order(index, tmp_path):
    """Rank 0 goes on with what all held before, and so turns over its film earlier than the other."""
    kinds = [COVERED] * 13 + [MUCH]
    run = Run(copper_of(range(14), kinds, 2), lambda: index, {}, {"history": 3})
    run.watch(tmp_path / "whole")
    for end in range(5, 13):
        folder = tmp_path / str(end)
        run.watch(folder, end=4)
        run.watch(folder, 4, resume=True, end=end)
        run.watch(folder, end, resume=True)
        assert differences(left_in(folder), left_in(tmp_path / "whole")) == []


def test_candidates_of_steps_that_began_anew_do_not_wait_for_others(index, tmp_path):
    steps, kinds = [0, 6, 1, 7], [COVERED, MUCH, COVERED, MORE]
    run = Run(copper_of(steps, kinds), lambda: index, {"save_every": 5}, {"novelty": False})
    run.watch(tmp_path)
    assert [(row["run"], row["step"]) for row in rows_of(tmp_path) if row["saved"] == "1"] == [("1", "6"), ("2", "7")]


def test_whole_frames_that_are_only_held_are_let_go_of(index, tmp_path):
    monitor = Monitor(index, select=2.0, halt=1e9, consecutive=1, threads=1)
    with Session(monitor, tmp_path, history=4, after=2) as session:
        for step, (_, (frame,)) in enumerate(copper_of(range(8), [COVERED, COVERED, MUCH, LITTLE] * 2)):
            session.observe(Frame(frame.positions, frame.numbers, frame.cell, True, step=step))
            held = list(session._history._moments)
            assert not any(moment._whole for moment in held[:-1])
    assert len(steps_of(tmp_path, "history")) == 8
