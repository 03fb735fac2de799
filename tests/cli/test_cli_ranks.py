"""`quests-md entropy` under mpiexec, and descriptors that ranks share, in memory or in a scratch file."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import ranks
from ase.build import bulk
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import LIMIT

from quests_md.cli import main, shared_work
from quests_md.cli.datasets import open_dataset
from quests_md.cli.shared_work import Scratch, compute_rows
from quests_md.descriptors import DescriptorSpec
from quests_md.errors import InputError, MonitorError, OutputError, SourceError
from quests_md.frame import Frame
from quests_md.information import information

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
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR", "PYTHONPATH") if name in os.environ}
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
