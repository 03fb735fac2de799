"""Reading a run's folder: over, going on, killed, damaged, of an older or a later version."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT, TESTS
from watched import CANDIDATE, COVERED, HALTING, SELECT, build_index, frame_of, frames_of, rows_of, run_of, session_of

from quests_md import read_run
from quests_md.errors import InputError, MissingExtraError, OutputError
from quests_md.files import write_atomically
from quests_md.recording.reader import (
    DEFAULTS,
    Run,
    count_frames,
    iterate_frames,
    read_events,
    read_last_row,
    read_rows,
)

HEAD = "run,step,time,n,max,max_id,mean,q50,q99,n_select,n_halt,band,saved,values,seconds,event,novelty,force_error"
ROW = "1,{},0.5,32,2.5,7,0.1,0.2,0.3,4,0,candidate,1,exact,0.01,1,nan,inf"
LAST = ("repeat", "configuration", "n_novel", "excess", "dropped", "n_sample", "sample_age", "sample")


@pytest.fixture(scope="module")
def index():
    return build_index()


@pytest.fixture(scope="module")
def folder(index, tmp_path_factory):
    """A run that has an event, is broken once and halts, with frames in every file."""
    folder = tmp_path_factory.mktemp("run") / "uq"
    cutout = {"radius": 2.0, "shape": "cluster"}
    options = {"history": 2, "after": 1, "cutout": cutout, "implausible": "continue"}
    with session_of(index, folder, **options) as session:
        for step, scale in enumerate((COVERED, COVERED, CANDIDATE, CANDIDATE, COVERED, COVERED)):
            session.observe(frame_of(step, scale))
        broken = frame_of(6)
        broken.positions[0] = broken.positions[1]
        session.observe(broken)
        session.observe(frame_of(7, HALTING))
    return folder


def write_rows(folder, *rows, head=HEAD, end="\n"):
    path = folder / "monitor.csv"
    path.write_text("\n".join([head, *rows]) + end)
    return path


def same(frames, others):
    """Check that frames are the same to the last digit."""
    frames, others = list(frames), list(others)
    assert len(frames) == len(others) > 0
    for atoms, other in zip(frames, others, strict=True):
        assert atoms.info.keys() == other.info.keys()
        assert atoms.arrays.keys() == other.arrays.keys()
        for name, values in atoms.arrays.items():
            np.testing.assert_array_equal(values, other.arrays[name])


# -- rows --------------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_run_are_those_of_its_file(folder):
    run = read_run(folder)
    kept = rows_of(folder)
    assert run.rows.dtype.names == tuple(DEFAULTS)
    assert run.n_damaged == 0
    assert len(run.rows) == len(kept) == 8
    for name in kept[0]:
        values, default = [row[name] for row in kept], DEFAULTS[name]
        if isinstance(default, str):
            expected, kind = values, "U"
        elif isinstance(default, bool):
            expected, kind = [value == "1" for value in values], "b"
        else:
            expected, kind = list(map(type(default), values)), "i" if isinstance(default, int) else "f"
        np.testing.assert_array_equal(run.rows[name], expected)
        assert run.rows[name].dtype.kind == kind
    assert {run.rows[name].dtype.str for name in ("run", "step", "n", "max_id", "event")} == {"<i8"}
    assert run.rows["band"].tolist()[-2:] == ["implausible", "halt"]


def test_columns_that_an_older_version_lacks_have_their_defaults(tmp_path):
    rows, damaged = read_rows(write_rows(tmp_path, ROW.format(10), ROW.format(20)))
    assert damaged == []
    assert [rows[name].tolist() for name in LAST[:3]] == [[0, 0], ["", ""], [0, 0]]
    assert np.isnan(rows["excess"]).all()
    assert [rows[name].tolist() for name in LAST[4:]] == [["", ""], [0, 0], [0, 0], ["", ""]]
    rows, _ = read_rows(write_rows(tmp_path, "1,5,32,0.5,covered", head="run,step,n,max,band"))
    assert (rows["step"][0], rows["max_id"][0], rows["saved"][0], rows["values"][0]) == (5, -1, False, "")


def test_columns_of_the_next_version_and_unknown_ones(tmp_path):
    head = f"{HEAD},{','.join(LAST)},later,n"  # a second `n` is as unknown as `later`
    long = "sha256:" + "a" * 300
    row = ROW.format(10) + f",3,{long},5,0.25,1:40,128,90,-3.5/100*4,anything at all,x"
    rows, damaged = read_rows(write_rows(tmp_path, row, ROW.format(20) + ",0,,0,nan,,32,0,,,", head=head))
    assert damaged == []
    assert rows.dtype.names == tuple(DEFAULTS)
    assert [rows[name].tolist()[0] for name in LAST] == [3, long, 5, 0.25, "1:40", 128, 90, "-3.5/100*4"]
    assert (rows["n"].tolist(), rows["dropped"].tolist()) == ([32, 32], ["1:40", ""])


def test_a_file_without_an_essential_column_is_refused(tmp_path):
    write_rows(tmp_path, "1,2", head="run,step")
    with pytest.raises(InputError, match=r"monitor\.csv: no column n, max, band in its first line"):
        read_rows(tmp_path / "monitor.csv")


DAMAGED = [
    ROW.format("nan"),
    ROW.format("1.5"),
    ROW.format(""),
    ROW.format(2**64),
    ROW.format(10) + ",1",
    ROW.format(10).rpartition(",")[0],
    ROW.format(10).replace("inf", "much"),
    ROW.format(10).replace("candidate,1", "candidate,2"),
    "",
    "\0" * 90,
    "\ufffd,",
]


def test_damaged_rows_are_left_out_and_told_by_line(tmp_path):
    lines = []
    for step, line in enumerate(DAMAGED):
        lines += [ROW.format(step), line]
    path = write_rows(tmp_path, *lines, ROW.format(99))
    rows, damaged = read_rows(path)
    assert rows["step"].tolist() == [*range(len(DAMAGED)), 99]
    assert damaged == [3 + 2 * i for i in range(len(DAMAGED))]
    (tmp_path / "run.json").write_text('{"index": {}}')
    assert read_run(tmp_path).n_damaged == len(DAMAGED)


@pytest.mark.parametrize("end", ["", "\n1,30,0.5,32,2", "\n" + ROW.format(30)])
def test_a_row_without_its_line_end_is_not_there_yet(tmp_path, end):
    rows, damaged = read_rows(write_rows(tmp_path, ROW.format(10), ROW.format(20), ROW.format(25), end=end))
    assert rows["step"].tolist() == ([10, 20, 25] if end else [10, 20])
    assert damaged == []


@pytest.mark.parametrize("text", [None, "", "run,st", HEAD + "\n"])
def test_a_run_without_rows_has_none(tmp_path, text):
    if text is not None:
        (tmp_path / "monitor.csv").write_text(text)
    rows, damaged = read_rows(tmp_path / "monitor.csv")
    assert (len(rows), damaged, rows.dtype.names) == (0, [], tuple(DEFAULTS))
    assert read_last_row(tmp_path / "monitor.csv") is None


def test_many_rows_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("quests_md.recording.reader._PIECE", 1000)
    lines = [ROW.format(step) for step in range(500)]
    lines[137], lines[400] = "broken", "1,2,3"
    rows, damaged = read_rows(write_rows(tmp_path, *lines))
    assert rows["step"].tolist() == [step for step in range(500) if step not in (137, 400)]
    assert damaged == [139, 402]


def test_the_last_row_alone(tmp_path, folder, monkeypatch):
    assert str(read_last_row(folder / "monitor.csv").item()) == str(read_run(folder).rows[-1].item())  # nan is not nan
    monkeypatch.setattr("quests_md.recording.reader._TAIL", 200)
    path = write_rows(tmp_path, *(ROW.format(step) for step in range(100)), end="\n1,100,0.")
    assert read_last_row(path)["step"] == 99
    assert read_last_row(write_rows(tmp_path, ROW.format(1), "broken")) is None


def test_rows_of_pandas(folder, monkeypatch):
    pandas = pytest.importorskip("pandas")
    run = read_run(folder)
    table = run.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table.columns.tolist() == list(DEFAULTS)
    assert table["step"].tolist() == list(range(8))
    assert table["step"].dtype == np.int64
    assert table["saved"].dtype == bool
    assert table[table.band == "halt"]["max"].tolist() == [run.rows["max"][-1]]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quests_md\[pandas\]'"):
        run.to_pandas()


# -- run.json and events.jsonl -----------------------------------------------------------------------------------------


def test_what_a_run_says_of_itself(folder, tmp_path):
    run = read_run(str(folder))
    assert (run.folder, run.about, run.status) == (folder, run_of(folder), "halted")
    assert run.about["select"] == SELECT
    (event,) = [each for each in run.events if each["start"] == 2]
    assert (event["end"], event["over"]) == (3, True)
    counts = ", ".join(f"{run.about[key]} {key}" for key in ("evaluations", "flagged", "saved", "events"))
    assert repr(run) == f"<Run in {folder}: halted, {counts}>"
    (tmp_path / "run.json").write_text("{")
    assert repr(Run(tmp_path)) == f"<Run in {tmp_path}: no readable run.json>"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}/run\.json: no such file: {tmp_path} holds no run$"):
        read_run(tmp_path)
    (tmp_path / "learning.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no run, but a loop: .*learning\.png shows it, and its explorations"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_run(tmp_path / "learning.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "says nothing of an index"),
        ({"index": None}, "says nothing of an index"),
        ({"status": None}, "status is None"),
        ({"saved": "many"}, "saved is 'many'"),
        ({"events": True}, "events is True"),
        ({"resumed": "x"}, "resumed is 'x'"),
        ({"index": {"k": "32"}}, "k is '32'"),
        ({"thresholds": []}, r"thresholds are \[\]"),
        ({"thresholds": {"select": 1.5}}, "thresholds are"),
        ({"thresholds": {"select": {"": "high"}}}, "thresholds are"),
        ({"select": "high"}, "select is 'high'"),
        ({"halt": None}, "halt is None"),
    ],
)
def test_a_damaged_run_json_is_told_by_file_and_key(tmp_path, content, said):
    text = content if isinstance(content, str) else json.dumps({"index": {}} | content)
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=rf"{tmp_path}/run\.json.*{said}"):
        read_run(tmp_path)


def test_events_are_whole_lines(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": 1}\n{"event": \n[3]\n\xff\n{"event": 4}\n{"event": 5}')
    assert read_events(path) == ([{"event": 1}, {"event": 4}], [2, 3, 4])
    assert read_events(tmp_path / "none.jsonl") == ([], [])


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["candidates", "cutouts", "history", "implausible"])
def test_frames_are_those_that_ase_reads(folder, name):
    same(getattr(read_run(folder), name)(), frames_of(folder, name))


def test_the_last_frame(folder, tmp_path):
    same([read_run(folder).last()], frames_of(folder, "last"))
    (tmp_path / "run.json").write_text('{"index": {}}')
    run = read_run(tmp_path)
    assert run.last() is None
    assert list(run.candidates()) == list(run.events) == []


def test_wherever_a_file_is_torn_its_whole_frames_are_read(folder, tmp_path):
    content = (folder / "candidates.extxyz").read_bytes()
    frames = frames_of(folder)
    assert len(frames) == 4
    ends = [content.index(b"\n32\n") + 1]
    while (place := content.find(b"\n32\n", ends[-1])) > 0:
        ends.append(place + 1)
    ends.append(len(content))
    path = tmp_path / "candidates.extxyz"
    for cut in {*ends, *(end - 1 for end in ends), *range(0, len(content), 397), *range(ends[0], ends[0] + 12)}:
        path.write_bytes(content[:cut])
        assert count_frames(path) == sum(end <= cut for end in ends)
    path.write_bytes(content[: ends[2] + 500])
    same(iterate_frames(path), frames[:3])


def test_damage_elsewhere_is_told_with_its_place(folder, tmp_path):
    content = (folder / "candidates.extxyz").read_bytes()
    first = content.index(b"\n32\n") + 1
    path = tmp_path / "candidates.extxyz"

    def error(text):
        path.write_bytes(text)
        found = []
        with pytest.raises(OutputError, match=r"candidates\.extxyz: ") as caught:
            found.extend(iterate_frames(path))
        return len(found), str(caught.value)

    lines = content[first:].split(b"\n")
    lines[5] = b"Cu what"
    n, text = error(content[:first] + b"\n".join(lines))
    assert n == 1
    assert f"frame 1, at byte {first}, is damaged" in text
    for count in (b"31", b"x", b"-32", b""):  # frame 1 ends too early, or has no number of atoms
        n, text = error(content[:first] + count + content[first + 2 :])
        assert n <= 1 + (count == b"31")
        assert ": frame " in text or "damaged at byte" in text
    n, text = error(content[:first] + b"3200" + content[first + 2 :])  # not the end of the file, torn
    assert (n, f"frame 1, at byte {first}, is damaged: it has not 3200 atoms" in text) == (1, True)


def test_a_file_that_is_replaced_meanwhile_is_not_mixed(folder, tmp_path):
    content = (folder / "candidates.extxyz").read_bytes()
    (tmp_path / "run.json").write_text('{"index": {}}')
    (tmp_path / "candidates.extxyz").write_bytes(content)
    run = read_run(tmp_path)
    frames = run.candidates()
    found = [next(frames)]
    first = content.index(b"\n32\n") + 1
    write_atomically(tmp_path / "candidates.extxyz", lambda file: file.write(content[first:]))  # one was let go of
    same([*found, *frames], frames_of(folder))
    same(run.candidates(), frames_of(folder)[1:])


GOES_ON = """
import sys
from watched import CANDIDATE, build_index, frame_of, session_of
session = session_of(build_index(), sys.argv[1], halt=1e9, novelty=True, budget=3)
for step in range(100000):
    session.observe(frame_of(step, CANDIDATE + 0.001 * (step % 50)))
"""


def test_a_run_that_goes_on_and_is_killed(index, tmp_path):
    """It is read again and again while it adds rows and frames, and lets frames go."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
    uq = tmp_path / "uq"
    process = subprocess.Popen([sys.executable, "-c", GOES_ON, str(uq)], env=environment)
    try:
        before = 0
        while before < 300:
            assert process.poll() is None
            if not (uq / "run.json").exists():
                continue
            run = read_run(uq)
            assert run.status == "running"
            rows = run.rows
            assert rows["step"].tolist() == list(range(len(rows)))
            assert run.n_damaged == 0
            assert len(rows) >= before
            steps = [atoms.info["step"] for atoms in run.candidates()]
            assert steps == sorted(set(steps))
            assert len(steps) <= 4
            before = len(rows)
    finally:
        process.kill()
        process.wait()
    names = sorted(path.name for path in uq.iterdir())
    run = read_run(uq)
    assert (run.status, run.n_damaged) == ("running", 0)
    assert len(run.rows) >= before
    assert sorted(path.name for path in uq.iterdir()) == names  # reading changes nothing
