"""A live reference: what it learns is what an index of the same frames knows, on any number of ranks."""

from __future__ import annotations

import math
import shutil

import naive
import numpy as np
import pytest
import ranks
from ase import Atoms
from calibrations import moving
from watched import names_of, rows_of, run_of

from quests_md import DescriptorSpec, Frame, Index, Monitor, Session
from quests_md.errors import CalibrationError, ElementError, IndexFileError, InputError, MonitorError
from quests_md.files import HeldFolder
from quests_md.index import Live, _live
from quests_md.recording import Place
from quests_md.recording.live_reference import LiveReference

EVERY, SKIP, SPAN = 10, 50, 300
BANDWIDTH = 0.03
LEARNED = range(SKIP, SKIP + SPAN + 1, EVERY)  # steps


def frames_of(n=45, seed=0, memory=0.0, first=0, **more):
    frames = moving(n, seed, memory=memory, **more)
    for i, frame in enumerate(frames):
        frame.step, frame.time = first + EVERY * i, 0.001 * (first + EVERY * i)
    return frames


def live_of(span=SPAN, skip=SKIP, **more):
    return Live(span=span, skip=skip, bandwidth=BANDWIDTH, **more)


def watching(live, folder, *, comm=None, select=1e6, **more):
    monitor = Monitor(live, select=select, halt=math.inf, every=EVERY, precision="double", comm=comm, **more)
    return Session(monitor, folder, novelty=False)


def watch(session, frames):
    with session:
        for frame in frames:
            session.observe(frame)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "uq"


@pytest.fixture(scope="module")
def frames():
    return frames_of()


@pytest.mark.parametrize("values", ["exact", "flagged"])
def test_what_it_learned_is_an_index_of_the_same_frames(frames, folder, values, capsys):
    offline = Index.build([frame for frame in frames if frame.step in LEARNED], bandwidth=BANDWIDTH)
    with watching(live_of(), folder, values=values, select=-1e6) as session:
        for frame in frames:
            decision = session.observe(frame)
            assert decision.evaluated == (frame.step > LEARNED[-1])
            if decision.evaluated:
                assert np.allclose(decision.dH, offline.delta_entropy(frame), rtol=1e-10, atol=1e-10)
            else:
                assert session.monitor.index.ready == (frame.step == LEARNED[-1])
                assert session.n_evaluated == 0
    assert [int(row["step"]) for row in rows_of(folder)] == [f.step for f in frames if f.step > LEARNED[-1]]
    assert run_of(folder)["reference"] == "live"
    learning = run_of(folder)["learning"]
    assert (learning["ready"], learning["frames"], learning["rows"]) == (True, len(LEARNED), len(offline))
    assert (learning["first"], learning["last"], learning["spacing"]) == (LEARNED[0], LEARNED[-1], EVERY)
    assert run_of(folder)["index"]["hash"] == Index.open(folder / "live.qindex").hash
    Index.verify(folder / "live.qindex")
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == ["learning", "learned", "select", "warning:", "finished;"]


def test_while_it_learns_nothing_is_published(frames, folder):
    with watching(live_of(), folder) as session:
        for frame in frames[:10]:
            decision = session.observe(frame)
            assert not decision.evaluated
            assert not decision.stop
            assert not len(decision.dH)
        with pytest.raises(MonitorError, match="not ready yet"):
            session.monitor.measure(frames[0])
    assert session.decision is None
    assert names_of(folder) == ["resume.lessons", "run.json"]
    assert run_of(folder)["learning"] == {
        "skip": SKIP, "span": SPAN, "ready": False, "steps": 90 - SKIP, "frames": 5, "seconds": 0.0,
    }  # fmt: skip
    assert run_of(folder)["index"]["bandwidth"] == BANDWIDTH


# -- ranks -------------------------------------------------------------------------------------------------------


def part_of(frame, comm):
    """Return what a rank holds of a frame: every `size`-th atom, in an order of its own, and their ghosts."""
    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
    mine = np.arange(len(atoms))[comm.rank :: comm.size][::-1]
    positions, rows = naive.with_ghosts(atoms, mine, 5.0)
    forces = np.ones((len(mine), 3))
    return Frame(
        positions, atoms.numbers[rows], np.asarray(frame.cell), True, ids=rows + 1, step=frame.step, time=frame.time,
        n_local=len(mine), forces=forces,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_ranks_learns_the_same(frames, tmp_path, size):
    some = [*frames[:37], frames[44]]
    offline = Index.build([frame for frame in some if frame.step in LEARNED], bandwidth=BANDWIDTH)

    def work(comm):
        with watching(live_of(), tmp_path / "uq", comm=comm, select={"false_alarm": 0.2}) as session:
            for frame in some:
                decision = session.observe(part_of(frame, comm))
        index = session.monitor.index.index
        assert np.array_equal(index.rows, offline.rows)
        return decision.dH[::-1], session.monitor.thresholds.resolved, session.monitor.index.learned

    results = ranks.run(size, work)
    expected = offline.delta_entropy(some[-1])
    for rank, (dH, resolved, learned) in enumerate(results):
        assert np.allclose(dH, expected[rank::size], rtol=1e-10, atol=1e-10)
        assert (resolved, learned) == results[0][1:]


def test_what_fails_on_rank_0_is_raised_on_all(frames, tmp_path):
    def work(comm):
        with watching(live_of(span=100), tmp_path / "uq", comm=comm) as session:
            for frame in frames:
                session.observe(part_of(frame, comm))

    first, *others = ranks.run(3, work)
    assert isinstance(first, CalibrationError)
    assert {type(other) for other in others} == {MonitorError}
    assert {str(other) for other in others} == {f"rank 0 failed: CalibrationError: {first}"}
    assert run_of(tmp_path / "uq")["status"] == "failed"


def test_several_ranks_need_a_path():
    def work(comm):
        live = live_of(span=1, skip=0)
        for frame in frames_of(2):
            live.learn(frame, 16, comm)
        live.finish(comm)

    assert {type(result) for result in ranks.run(2, work)} == {InputError}


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_that_goes_on_takes_what_it_has_learned(frames, tmp_path, size):
    def work(comm):
        with watching(live_of(), tmp_path / "uq", comm=comm) as first:
            for frame in frames[:36]:
                first.observe(part_of(frame, comm))
        again = live_of()
        monitor = Monitor(again, select=1e6, halt=1e6, comm=comm)
        learning = LiveReference(Place(HeldFolder(tmp_path / "uq"), monitor))
        learning.open()
        assert again.ready
        assert again.learned == first.monitor.index.learned
        assert np.array_equal(again.index.rows, first.monitor.index.index.rows)
        return learning.describe()["frames"]

    assert ranks.run(size, work) == [len(LEARNED)] * size


class Killed(BaseException):
    """The program is killed here."""


def killed_before_it_said_so(session, folder):
    """Let a session end when its index is saved and run.json does not tell of it yet; return what is left."""

    def killed():
        raise Killed

    for frame in frames_of()[:35]:
        session.observe(frame)
    session._write_about = killed
    with pytest.raises(Killed):
        session.observe(frames_of()[35])
    left = folder.with_name("left")
    shutil.copytree(folder, left)
    del session._write_about
    session.close()
    assert names_of(left) == ["live.qindex", "resume.lessons", "run.json"]
    assert run_of(left)["index"] == live_of().describe()
    return left


@pytest.mark.parametrize("killed", ["later", "while it learned", "before it said so"])
def test_a_session_is_resumed(frames, folder, killed):
    until, n_rows = {"later": (38, 3), "while it learned": (20, 0), "before it said so": (36, 1)}[killed]
    if killed == "before it said so":
        folder = killed_before_it_said_so(watching(live_of(), folder), folder)
    else:
        watch(watching(live_of(), folder), frames[:until])
    monitor = Monitor(live_of(), select=1e6, halt=math.inf, every=EVERY, precision="double")
    with Session(monitor, folder, novelty=False, resume=True) as session:
        assert monitor.index.ready == (until > 35)
        assert session.observe(frames[until]).evaluated == (until > 35)
    if n_rows:
        assert len(rows_of(folder)) == n_rows
        assert names_of(folder) == ["last.extxyz", "live.qindex", "monitor.csv", "run.json"]
    else:
        assert names_of(folder) == ["resume.lessons", "run.json"]


def test_a_run_that_had_not_learned_yet_begins_anew(tmp_path):
    live = live_of()
    LiveReference(Place(HeldFolder(tmp_path), Monitor(live, select=1e6, halt=1e6))).open()
    assert not live.ready


def test_another_index_is_not_taken_for_a_live_one(frames, tmp_path):
    Index.build(frames[:2], bandwidth=BANDWIDTH).save(tmp_path / "live.qindex")
    with pytest.raises(IndexFileError, match="not the index of a live reference"):
        live_of().open(tmp_path / "live.qindex")


# -- what is refused ---------------------------------------------------------------------------------------------


def test_a_span_of_few_correlation_times_is_refused(folder):
    says = r"covers \S+ correlation times of \S+ steps \(\S+ ps\).*needs 10"
    with pytest.raises(CalibrationError, match=says) as error:
        watch(watching(live_of(skip=0, span=400), folder), frames_of(60, memory=16.0))
    assert run_of(folder)["status"] == "failed"
    words = str(error.value).replace(":", " ").split()
    covered, correlation = float(words[3]), float(words[7])
    assert 3 < covered < 10
    assert 40 < correlation < 160  # about 8 frames of 10 steps: the rows forget in half the time of the places
    wanted = int(words[words.index("=") + 1])
    assert wanted == pytest.approx(12 * correlation, rel=1e-3)


def test_the_span_that_would_do_is_enough(folder):
    with watching(live_of(skip=0, span=1600), folder) as session:
        for frame in frames_of(170, memory=16.0):
            session.observe(frame)
    assert 40 < session.monitor.index.learned.correlation < 160


def test_a_run_on_its_way_to_equilibrium_is_refused(folder):
    """Every frame is hotter than the one before."""
    perfect = moving(1, 0, scale=0.0)[0]
    rng = np.random.default_rng(2)
    hotter = [rng.normal(0.0, 0.02 + 0.004 * i, perfect.positions.shape) for i in range(40)]
    frames = [
        Frame(perfect.positions + moved, perfect.numbers, perfect.cell, True, step=EVERY * i)
        for i, moved in enumerate(hotter)
    ]
    with pytest.raises(CalibrationError, match="longer skip"):
        watch(watching(live_of(skip=0), folder), frames)


def test_a_run_that_does_not_move_is_refused(folder):
    still = moving(1, 0)[0]
    frames = [Frame(still.positions, still.numbers, still.cell, True, step=step) for step in range(0, 400, EVERY)]
    with pytest.raises(CalibrationError, match=r"covers 0\.\d+ correlation times"):
        watch(watching(live_of(skip=0), folder), frames)


def test_a_span_of_few_frames_is_refused(frames, folder):
    with pytest.raises(CalibrationError, match=r"span of 100 steps holds 11 frames, and .* needs 20"):
        watch(watching(live_of(span=100), folder), frames)


def test_a_rate_that_so_few_frames_do_not_resolve_is_refused(frames, folder):
    with pytest.raises(InputError, match=r"select: a false-alarm rate of 0\.001 .* is not resolved"):
        watch(watching(live_of(), folder, select={"false_alarm": 0.001}), frames)
    assert run_of(folder)["status"] == "failed"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"span": 0}, "span must be a whole number of steps, at least 1, not 0"),
        ({"span": 1.5}, "span must be a whole number"),
        ({"skip": -1}, "skip must be a whole number of steps, at least 0, not -1"),
        ({"bandwidth": 0.0}, "bandwidth must be a positive number"),
        ({"k": 1}, "k must be"),
        ({"species": "both"}, "species must be"),
    ],
)
def test_values_out_of_range(wrong, message):
    with pytest.raises(InputError, match=message):
        Live(**{"span": 10, **wrong})


def test_two_elements_need_a_choice_at_once(folder):
    frame = moving(1, 0)[0]
    frame.numbers = np.where(np.arange(16) < 8, 14, 6)
    with pytest.raises(MonitorError, match="species"), watching(live_of(), folder) as session:
        session.observe(frame)


@pytest.mark.parametrize("species", ["ignore", "full", "centre", "neighbours"])
def test_two_elements(folder, species):
    frames = frames_of()
    for frame in frames:
        frame.numbers = np.where(np.arange(16) % 2, 14, 6)
    offline = Index.build(
        [frame for frame in frames if frame.step in LEARNED], DescriptorSpec(species=species), bandwidth=BANDWIDTH
    )
    session = watching(live_of(species=species), folder, select=-1e6, values="flagged")
    watch(session, frames)
    assert np.allclose(session.decision.dH, offline.delta_entropy(frames[-1]), rtol=1e-10, atol=1e-10)
    assert session.monitor.index.elements == ("C", "Si")


def test_an_element_that_comes_later_is_not_known(frames, folder):
    session = watching(live_of(), folder)
    for frame in frames[:40]:
        session.observe(frame)
    strange = Frame(frames[40].positions, np.where(np.arange(16) < 8, 14, 6), frames[40].cell, True, step=400)
    with pytest.raises(MonitorError, match="ElementError: C is not in the index"):
        session.observe(strange)
    with pytest.raises(ElementError):
        session.monitor.index.check_elements(np.array([6]))


def test_frames_without_watched_atoms_teach_nothing(frames, folder):
    nobody = Frame(frames[0].positions, frames[0].numbers, frames[0].cell, True, watched=np.zeros(16, bool))
    with pytest.raises(MonitorError, match="no atom is watched"), watching(live_of(skip=0), folder) as session:
        session.observe(nobody)


@pytest.mark.parametrize("implausible", ["stop", "continue"])
def test_a_broken_frame_is_kept_apart_and_not_learned(frames, folder, implausible):
    session = watching(live_of(), folder, implausible=implausible)
    positions = frames[10].positions.copy()
    positions[3] = np.nan
    broken = Frame(positions, frames[10].numbers, frames[10].cell, True, step=100)
    if implausible == "stop":
        with pytest.raises(MonitorError, match="not finite"):
            watch(session, [*frames[:10], broken])
        assert run_of(folder)["status"] == "failed"
    else:
        watch(session, [*frames[:10], broken, *frames[11:]])
        assert session.monitor.index.learned.frames == len(LEARNED) - 1
        assert session.decision.band == "covered"
    assert (folder / "implausible.extxyz").exists()


# -- which frames --------------------------------------------------------------------------------------------------


def test_a_step_that_comes_twice_is_learned_once(frames, folder):
    with watching(live_of(), folder) as session:
        for frame in frames[:36]:
            session.observe(frame)
            if frame.step < LEARNED[-1]:
                session.observe(frame)
    assert session.monitor.index.learned.frames == len(LEARNED)


def test_steps_that_go_backwards_begin_it_anew(frames, folder):
    with watching(live_of(), folder) as session:
        for frame in frames_of(30, seed=5, first=7000):
            session.observe(frame)
        assert session.monitor.index.progress["frames"] > 0
        for frame in frames:
            session.observe(frame)
    offline = Index.build([frame for frame in frames if frame.step in LEARNED], bandwidth=BANDWIDTH)
    assert np.array_equal(session.monitor.index.index.rows, offline.rows)


def test_a_run_may_begin_at_any_step(folder):
    with watching(live_of(), folder) as session:
        for frame in frames_of(first=1000):
            session.observe(frame)
    learned = session.monitor.index.learned
    assert (learned.first, learned.last) == (1000 + LEARNED[0], 1000 + LEARNED[-1])


@pytest.mark.parametrize(("name", "most"), [("_MOST_FRAMES", 45), ("_MOST_ROWS", 45 * 16)])
def test_when_it_is_full_every_other_frame_goes(monkeypatch, folder, name, most):
    monkeypatch.setattr(_live, name, most)
    monkeypatch.setattr(_live, "_ROOM_FOR", 1)
    frames = frames_of(110)
    with watching(live_of(skip=0, span=1000), folder) as session:
        for frame in frames:
            session.observe(frame)
    learned = session.monitor.index.learned
    assert (learned.frames, learned.spacing) == (26, 4 * EVERY)
    steps = range(0, 1001, 4 * EVERY)
    offline = Index.build([frame for frame in frames if frame.step in steps], bandwidth=BANDWIDTH)
    assert np.array_equal(session.monitor.index.index.rows, offline.rows)


def test_of_large_frames_an_even_choice_of_atoms_is_learned(monkeypatch, folder, frames):
    monkeypatch.setattr(_live, "_MOST_ROWS", 50 * 8)  # 16 atoms have room for 25 frames
    with watching(live_of(), folder) as session:
        for frame in frames:
            decision = session.observe(frame)
    assert session.monitor.index.learned.rows == len(LEARNED) * 8
    assert decision.n == 16
    chosen = [f.copy() for f in frames if f.step in LEARNED]
    for frame in chosen:
        frame.watched[1::2] = False
    assert np.array_equal(session.monitor.index.index.rows, Index.build(chosen, bandwidth=BANDWIDTH).rows)


# -- by hand -------------------------------------------------------------------------------------------------------


def test_a_monitor_alone_leaves_the_end_to_its_owner(frames):
    live = live_of()
    monitor = Monitor(live, select=1e6, halt=math.inf, every=EVERY)
    with pytest.raises(MonitorError, match="not over"):
        live.finish()
    for frame in frames[:36]:
        monitor.observe(frame)
    assert live.is_over
    with pytest.raises(MonitorError, match=r"call finish\(\)"):
        monitor.observe(frames[36])
    live.finish(threads=1)
    assert live.index.path is None
    assert live.calibration is not None
    assert monitor.observe(frames[36]).evaluated
    query = live.spec.compute(frames[40])
    dH = live.index.delta_entropy(query)
    assert np.array_equal(live.exceeds(query, float(np.median(dH))), dH > np.median(dH))
    assert (live.bandwidth, live.elements, live.describe()) == (BANDWIDTH, ("Si",), live.index.describe())
