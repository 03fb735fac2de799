"""What is recorded is read back as it was, and a file that cannot grow stays as it is."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import resource
import threading
from dataclasses import replace

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from watched import frame_of, names_of, session_of

from quests_md import Decision, Frame, Monitor
from quests_md.errors import OutputError
from quests_md.files import HeldFolder, write_atomically
from quests_md.files.extxyz import format_frame, format_parts
from quests_md.monitor import Key
from quests_md.recording import Moment, Place
from quests_md.recording.reader import read_rows
from quests_md.recording.rows import COLUMNS, RowLines

any_float = st.floats(width=64)
finite = st.floats(-1e6, 1e6)


@contextlib.contextmanager
def largest_file(size):
    """Let no file of this process grow beyond `size` bytes: writing fails midway, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def held(path):
    folder = HeldFolder(path)
    folder.claim()
    return folder


def a_frame(n=4, **more):
    rng = np.random.default_rng(n)
    return Frame(rng.normal(size=(n, 3)) * 1e3, np.resize([14, 29, 0], n), step=7, **more)


def read(frame, dH, info=None):
    return ase.io.read(io.StringIO(format_frame(frame, np.asarray(dH), info or {}).decode()), format="extxyz")


RNG = np.random.default_rng(0)
FRAMES = {
    "bare": {},
    "one atom": {"n": 1},
    "periodic": {"cell": RNG.normal(size=(3, 3)), "pbc": True},
    "slab": {"cell": np.diag([4.1, 5.2, 60.3]), "pbc": (True, True, False)},
    "moved corner": {"cell": np.eye(3) * 9, "pbc": True, "origin": np.array([-0.1, 1 / 3, 2e-9])},
    "model": {"velocities": RNG.normal(size=(4, 3)), "forces": RNG.normal(size=(4, 3)), "energy": -1 / 3},
    "numpy scalars": {"energy": np.float64(-1 / 3), "time": np.float64(0.1)},
    "single precision": {"forces": RNG.normal(size=(4, 3)).astype(np.float32), "energy": np.float32(0.1)},
    "ids of the host": {"ids": np.array([9, 3, 2_000_000_000, 1])},
}


@pytest.mark.parametrize("name", FRAMES)
def test_ase_reads_the_same_frame(name):
    frame = a_frame(**FRAMES[name])
    dH = np.resize([math.nan, math.inf, -math.inf, 1 / 3], len(frame.numbers))
    atoms = read(frame, dH)
    for wanted, got in [
        (frame.positions, atoms.positions),
        (frame.numbers, atoms.numbers),
        (frame.cell, atoms.cell),
        (frame.pbc, atoms.pbc),
        (frame.ids, atoms.arrays["id"]),
        (dH, atoms.arrays["dH"]),
        (frame.origin, atoms.info.get("Origin", np.zeros(3))),
        (frame.energy, atoms.info.get("model_energy")),
        (frame.forces, atoms.arrays.get("model_forces")),
    ]:
        np.testing.assert_array_equal(got, wanted)
    assert (b"Lattice" in format_frame(frame, dH, {})) == frame.cell.any()
    assert atoms.calc is None  # energy and forces are those of an oracle
    if frame.velocities is None:
        assert "momenta" not in atoms.arrays
    else:
        np.testing.assert_allclose(atoms.get_velocities(), frame.velocities, rtol=1e-15)


@given(
    positions=arrays(float, (2, 3), elements=any_float),
    dH=arrays(float, 2, elements=any_float),
    cell=arrays(float, (3, 3), elements=finite),
    info=st.fixed_dictionaries({"f": any_float, "i": st.integers(-(2**62), 2**62), "b": st.booleans(), "s": st.text()}),
)
def test_every_double_and_every_string_survives(positions, dH, cell, info):
    atoms = read(Frame(positions, np.array([14, 14]), cell), dH, info)
    np.testing.assert_array_equal(atoms.positions, positions)
    np.testing.assert_array_equal(atoms.arrays["dH"], dH)
    np.testing.assert_array_equal(atoms.cell, cell)
    assert set(atoms.info) == set(info)
    for key, value in info.items():
        np.testing.assert_array_equal(atoms.info[key], value)
    assert isinstance(atoms.info["s"], str)
    assert isinstance(atoms.info["b"], bool)


def test_a_frame_is_the_same_in_parts(monkeypatch):
    whole = format_frame(a_frame(), np.arange(4.0), {"n": 1})
    monkeypatch.setattr("quests_md.files.extxyz._ATOMS", 3)
    assert format_frame(a_frame(), np.arange(4.0), {"n": 1}) == whole


@pytest.mark.parametrize("text", ["T", "true", "nan", "-1e5", "12", "a b", 'q"\\', "a\nb", "", "x=[1]"])
def test_strings_stay_strings(text):
    assert read(a_frame(), np.zeros(4), {"s": text, "band": "covered"}).info == {"s": text, "band": "covered"}


def test_frames_follow_one_another(tmp_path):
    folder, path = held(tmp_path), tmp_path / "a.extxyz"
    for n in (3, 1, 2):
        size = folder.append(path.name, format_parts(a_frame(n), np.zeros(n), {"n": n}, None))
    assert [(len(a), a.info["n"]) for a in ase.io.read(path, ":")] == [(3, 3), (1, 1), (2, 2)]
    assert path.read_bytes()[-size:] == format_frame(a_frame(2), np.zeros(2), {"n": 2})
    folder.replace(path.name, format_parts(a_frame(2), np.zeros(2), {}, None))
    assert len(ase.io.read(path, ":")) == 1
    assert list(tmp_path.iterdir()) == [path]


@given(values=st.lists(st.tuples(*[any_float] * 8), min_size=2, max_size=2), step=st.integers(-(2**62), 2**62))
def test_numbers_of_rows_are_read_back(tmp_path_factory, index, values, step):
    """Whatever a row holds, reading it gives the same double, and the same whole number."""
    path = tmp_path_factory.mktemp("rows")
    rows = RowLines(Place(held(path), Monitor(index, select=1.0, halt=2.0)))
    names = ("maximum", "mean", "q50", "q99", "novelty", "force_error", "excess")
    for time, *numbers in values:
        decision = Decision(step, evaluated=True, max_id=2**62 + 1, n=np.int64(3), save=np.bool_(True), repeat=4)
        decision = replace(decision, n_sample=128, sample_age=2**61)
        decision = replace(decision, mark=tuple(numbers[:2]), **dict(zip(names, numbers, strict=True)))
        moment = Moment(replace(a_frame(), time=np.float64(time)), decision, dropped=Key(1, 2, 3))
        rows.see(moment)
    with open(path / "monitor.csv", newline="") as file:
        header, *cells = csv.reader(file)
    assert header == list(COLUMNS)
    table, damaged = read_rows(path / "monitor.csv")
    assert damaged == []
    for (time, *numbers), row, read_row in zip(values, cells, table, strict=True):
        text = dict(zip(header, row, strict=True))
        columns = ("time", "max", *names[1:])
        np.testing.assert_array_equal([float(text[name]) for name in columns], [time, *numbers])
        np.testing.assert_array_equal([read_row[name] for name in columns], [time, *numbers])
        np.testing.assert_array_equal([float(half) for half in text["configuration"].split("/")], numbers[:2])
        wanted = [str(step), str(2**62 + 1), "3", "1", "4", "1:2:3", "128", str(2**61)]
        names_of_text = ("step", "max_id", "n", "saved", "repeat", "dropped", "n_sample", "sample_age")
        assert [text[name] for name in names_of_text] == wanted
        assert [read_row[name] for name in ("step", "max_id", "n", "saved")] == [step, 2**62 + 1, 3, True]


def test_what_does_not_fit_is_cut_off_again(tmp_path):
    folder, path = held(tmp_path), tmp_path / "a"
    with largest_file(100):
        assert folder.append("a", [b"x" * 60]) == 60
        with pytest.raises(OutputError, match=r"a: cannot be written: File too large"):
            folder.append("a", [b"y" * 30, b"y" * 30])
        assert path.read_bytes() == b"x" * 60
        folder.append("a", [b"z" * 40])
        assert path.read_bytes() == b"x" * 60 + b"z" * 40


def test_a_first_record_that_does_not_fit_leaves_no_file(tmp_path):
    folder = held(tmp_path)
    frame = format_parts(a_frame(), np.zeros(4), {}, None)
    with largest_file(10):
        for write in (
            lambda: folder.append("t.csv", [b"too long\n"], b"column\n"),
            lambda: folder.append("f.extxyz", frame),
            lambda: folder.replace("f.extxyz", [b"long" * 5]),
        ):
            with pytest.raises(OutputError):
                write()
    assert list(tmp_path.iterdir()) == []
    folder.append("t.csv", [b"1.0\n"], b"column\n")
    folder.append("t.csv", [b"2.0\n"], b"column\n")
    assert (tmp_path / "t.csv").read_text() == "column\n1.0\n2.0\n"


def test_a_file_outlives_a_replacement_that_does_not_fit(tmp_path):
    folder = held(tmp_path)
    folder.replace("a", [b"old"])
    with largest_file(10), pytest.raises(OutputError, match=r"a: cannot be written: File too large"):
        folder.replace("a", [b"n" * 8, b"n" * 8])
    assert (tmp_path / "a").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_an_old_file_outlives_a_failed_replacement(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, lambda file: file.write(b"old"))
    for error, write in [
        (ZeroDivisionError, lambda _: 1 / 0),
        (OutputError, lambda file: file.write(b"n" * 99)),
    ]:
        with largest_file(10), pytest.raises(error):
            write_atomically(path, write)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]


def test_of_runs_that_begin_at_once_one_gets_the_folder(tmp_path, index):
    n = 4

    def begin(path, gate, outcomes, begun):
        gate.wait()
        try:
            begun.append(session_of(index, path))
            outcomes.append("begun")
        except OutputError as error:
            outcomes.append(str(error))

    for i in range(50):
        path, gate, outcomes, begun = tmp_path / str(i), threading.Barrier(n), list[str](), list[object]()
        threads = [threading.Thread(target=begin, args=(path, gate, outcomes, begun)) for _ in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count("begun") == 1
        assert all(text == "begun" or "choose another output" in text for text in outcomes)
        begun[0].close()


def test_a_folder_that_cannot_be_written_is_not_claimed(tmp_path, index):
    path = tmp_path / "uq"
    with largest_file(3), pytest.raises(OutputError, match=r"uq: cannot be used as output folder: File too large"):
        session_of(index, path)
    assert names_of(path) == []
    with session_of(index, path) as session:
        assert session.observe(frame_of(0)).evaluated
