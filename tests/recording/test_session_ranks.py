"""A run on several ranks leaves the files of one, and no rank waits for another that has failed."""

from __future__ import annotations

import numpy as np
import pytest
import ranks
from watched import (
    CANDIDATE,
    COVERED,
    HALTING,
    MODEL,
    atoms_of,
    block,
    frames_of,
    has_dH_of,
    names_of,
    part_of,
    rows_of,
    run_of,
    session_of,
    steps_of,
)

from quests_md import Frame, Session
from quests_md.config import RunConfig
from quests_md.errors import Halted, IndexFileError, MonitorError, OutputError

SIZE = 3


def on_all_ranks(work):
    """Run ``work(comm)`` on the ranks; return what came of it on rank 0, and on the others, which agree."""
    first, *others = ranks.run(SIZE, work)
    assert len({(type(result), str(result)) for result in others}) == 1
    return first, others[0]


@pytest.mark.parametrize("idle", [None, 0, 2])
def test_files_are_those_of_one_rank(index, folder, idle):
    def work(comm):
        with session_of(index, folder, comm=comm) as session:
            for step, scale in enumerate([COVERED, CANDIDATE, COVERED, HALTING]):
                session.observe(part_of(step, scale, comm, idle))
        return session.status

    assert on_all_ranks(work) == ("halted", "halted")
    with session_of(index, folder.parent / "alone") as session:
        for step, scale in enumerate([COVERED, CANDIDATE, COVERED, HALTING]):
            more = {"ids": np.arange(1, 33), "velocities": MODEL[0], "forces": MODEL[1], "energy": -1.5}
            session.observe(Frame.from_atoms(atoms_of(scale), step, 0.5 * step, **more))
    assert names_of(folder) == names_of(session.output)
    for name in ("candidates", "last"):
        assert steps_of(folder, name) == steps_of(session.output, name)
        for saved, alone in zip(frames_of(folder, name), frames_of(session.output, name), strict=True):
            assert saved.arrays["id"].tolist() == list(range(1, 33))
            for key in ("positions", "numbers", "momenta", "model_forces"):
                np.testing.assert_array_equal(saved.arrays[key], alone.arrays[key])
            assert has_dH_of(index, saved)
            assert saved.info.keys() == alone.info.keys()
            for key, value in alone.info.items():
                assert saved.info[key] == (pytest.approx(value, rel=1e-10) if key == "dH_max" else value), key
    for row, alone in zip(rows_of(folder), rows_of(session.output), strict=True):
        for key in set(row) - {"seconds"}:
            if key in ("max", "mean", "q50", "q99"):
                assert float(row[key]) == pytest.approx(float(alone[key]), rel=1e-9)
            elif key == "configuration":  # a sum over the ranks
                mark, wanted = (list(map(float, each[key].split("/"))) for each in (row, alone))
                assert mark == pytest.approx(wanted, rel=0, abs=1e-10)
            else:
                assert row[key] == alone[key], key
    assert (run_of(folder)["ranks"], run_of(session.output)["ranks"]) == (SIZE, 1)


@pytest.mark.parametrize("name", ["monitor.csv", "candidates.extxyz", "last.extxyz", "run.json"])
@pytest.mark.parametrize("ends", ["goes on", "ends here"])
def test_what_rank_0_cannot_write_fails_all(index, folder, name, ends):
    def work(comm):
        session = session_of(index, folder, comm=comm)
        session.observe(part_of(0, COVERED, comm))
        if comm.rank == 0:
            block(folder / name)
        comm.broadcast(None)
        try:
            # With a candidate run.json is written, too, and that is collective.
            session.observe(part_of(1, COVERED if name == "monitor.csv" else CANDIDATE, comm))
            if ends == "goes on":
                session.observe(part_of(2, COVERED, comm))
            session.close()
        finally:
            assert session.status == "failed"

    first, other = on_all_ranks(work)
    # A row is written without the others: they hear of it at the next evaluation, or at the end.
    late = name == "monitor.csv" and ends == "goes on"
    assert type(first) is (MonitorError if late else OutputError)
    assert type(other) is MonitorError
    # candidates.extxyz was not there when somebody put something in its place.
    problem = "somebody else has made this file" if name == "candidates.extxyz" else "cannot be written: Is a directory"
    for error in (first, other):
        assert f"{name}: {problem}" in str(error)


@pytest.mark.parametrize("victim", range(SIZE))
def test_a_broken_part_is_kept_with_the_others(index, folder, victim):
    def work(comm):
        session = session_of(index, folder, comm=comm)
        session.observe(part_of(0, COVERED, comm))
        frame = part_of(1, COVERED, comm)
        if comm.rank == victim:
            frame.positions[0] = np.nan
        session.observe(frame)

    first, other = on_all_ranks(work)
    assert str(first) == str(other)
    assert str(first).startswith("watching failed at step 1: 1 atoms have positions that are not finite")
    (broken,) = frames_of(folder, "implausible")
    assert np.isnan(broken.positions).all(axis=1).sum() == 1
    assert (len(broken), steps_of(folder, "last"), run_of(folder)["status"]) == (32, [1], "failed")


@pytest.mark.parametrize("missing", range(SIZE))
def test_no_rank_waits_for_a_part_that_was_never_made(index, folder, missing):
    def work(comm):
        session = session_of(index, folder, comm=comm)
        frame = part_of(0, COVERED, comm)
        frame.positions[:] = np.nan  # as broken as a frame can be: the others try to keep theirs
        if comm.rank == missing:
            session.observe(None, step=0, error=ValueError("no ids"))
        else:
            session.observe(frame)

    first, other = on_all_ranks(work)
    assert type(first) is type(other) is MonitorError
    assert names_of(folder) == ["run.json"]


def test_a_halt_and_its_acknowledgement_reach_all(index, folder):
    def work(comm):
        session = session_of(index, folder, comm=comm)
        assert session.observe(part_of(0, HALTING, comm)).stop
        with pytest.raises(Halted):
            session.observe(part_of(1, COVERED, comm))
        session.acknowledge()
        session.observe(part_of(1, COVERED, comm))
        session.close()
        return session.status

    assert on_all_ranks(work) == ("finished", "finished")


def test_a_folder_that_is_refused_is_refused_on_all(index, folder):
    session_of(index, folder).close()
    first, other = on_all_ranks(lambda comm: session_of(index, folder, comm=comm))
    assert type(first) is OutputError
    assert type(other) is MonitorError
    assert "holds an earlier run" in str(other)


def test_an_index_that_one_rank_cannot_read(index, folder):
    index.save(folder.parent / "cu.qindex")

    def work(comm):
        path = folder.parent / ("none.qindex" if comm.rank == 1 else "cu.qindex")
        return Session.from_config(RunConfig(index=str(path), select=1, halt=9, output=str(folder)), comm)

    results = ranks.run(SIZE, work)
    assert [type(result) for result in results] == [MonitorError, IndexFileError, MonitorError]
    assert not folder.exists()
