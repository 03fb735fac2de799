"""The verbs that judge datasets: what they print, write and draw, beside the library and `quests`; how they fail."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner, Result
from paths import DOCS

from quests_md import DescriptorSpec, Index, cli, delta_entropy, information

# Two frames: all that ASE knows to read, a site that is no environment, and a fixed atom.
LABELLED = """3
Lattice="5.4 0 0 0 5.4 0 0 0 5.4" Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1:seen:I:2:move_mask:L:1 """ + (
    """energy=1.5 free_energy=1.25 dipole="1 2 3" stress="1 4 5 4 2 6 5 6 3" note="as it was" label=7 flag=T pbc="T T T"
Si 0.10 0 0 1 2 3 0.1 4 5 T
X  2.70 0 0 0 0 0 0.2 6 7 T
Si 1.35 1.3500000000000123 1.35 -1 -2 -3 0.3 8 9 F
2
Lattice="5.4 0 0 0 5.4 0 0 0 5.4" Properties=species:S:1:pos:R:3 step=40 pbc="T T F"
Si 0 0 0
Si 1.4 1.3 1.3
"""
)
DRAWN = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with frames of silicon in two groups, their index, queries, and descriptors of our own."""
    folder = tmp_path_factory.mktemp("datasets")
    frames = [bulk("Si", cubic=True) for _ in range(6)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.03 + 0.05 * (seed % 2), seed=seed)
        atoms.info["kind"] = ("cold", "warm")[seed % 2]
    ase.io.write(folder / "train.extxyz", frames)
    Index.build(ase.io.read(folder / "train.extxyz", ":"), threads=1).save(folder / "si.qindex")
    queries = [bulk("Si", cubic=True) * (2, 1, 1) for _ in range(3)]
    for seed, atoms in enumerate(queries):
        atoms.rattle(0.06, seed=10 + seed)
        atoms.info.update(step=100 * seed, kind="query", note="as it was", label=7)
    ase.io.write(folder / "test.extxyz", queries)
    np.save(folder / "own.npy", np.random.default_rng(0).random((60, 5)) / 40)
    return folder


@pytest.fixture(autouse=True)
def there(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder with links to the files."""
    monkeypatch.chdir(tmp_path)
    for file in made.iterdir():
        Path(file.name).symlink_to(file)


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [*arguments, "--threads", "1"])
    assert result.exit_code == code, result.output
    return result


def rows_of(file: str) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def described(file: str, quests) -> np.ndarray:
    return np.concatenate([quests.descriptors(atoms, 32, 5.0) for atoms in ase.io.read(file, ":")])


# -- entropy and diversity ---------------------------------------------------------------------------------------------


def test_entropy_and_diversity_are_those_of_quests(quests) -> None:
    options = ("train.extxyz", "--bandwidth", "0.03", "--bandwidth", "0.015")
    shown = run("entropy", *options, "-o", "h.json").stdout
    assert run("diversity", *options).stdout == shown
    result = json.loads(Path("h.json").read_text())
    x = described("train.extxyz", quests)
    assert [row["bandwidth"] for row in result["results"]] == [0.015, 0.03]
    for row in result["results"]:
        assert row["entropy"] == pytest.approx(quests.entropy(x, row["bandwidth"]), rel=1e-6)
        assert row["diversity"] == pytest.approx(quests.diversity(x, row["bandwidth"]), rel=1e-6)
        assert row["information_gap"] == pytest.approx(math.log(48) - row["entropy"], rel=1e-12)
        assert row["efficiency"] == pytest.approx(row["entropy"] / math.log(48), rel=1e-12)
    assert (result["n_env"], result["n_frames"]) == (48, 6)
    assert result["sources"][0]["file"] == "train.extxyz"
    table = [line.split() for line in shown.splitlines()]
    assert table[0] == ["bandwidth", "n_env", "entropy", "diversity", "information_gap", "efficiency"]
    assert table[1][:3] == ["0.015", "48", f"{result['results'][0]['entropy']:.6g}"]


def test_each_group_is_a_dataset_of_its_own() -> None:
    run("entropy", "train.extxyz", "--group-key", "kind", "-o", "h.csv")
    found = {row["group"]: float(row["entropy"]) for row in rows_of("h.csv")}
    x = DescriptorSpec().compute(ase.io.read("train.extxyz", ":"))
    which = np.repeat(np.arange(6) % 2, 8)
    alone = [information.entropy(x[which == group]) for group in (0, 1)]
    assert found == dict(zip(("cold", "warm", "(all)"), [*alone, information.entropy(x)], strict=True))


def test_samples_are_those_of_the_library() -> None:
    run("entropy", "train.extxyz", "--sample", "20", "--runs", "4", "--seed", "3", "--replace", "-o", "h.csv")
    (row,) = rows_of("h.csv")
    x = DescriptorSpec().compute(ase.io.read("train.extxyz", ":"))
    sampled = information.sample_entropy(x, 20, 4, seed=3, replace=True)
    assert [float(row[key]) for key in ("entropy", "std", "error")] == [
        sampled.mean,
        sampled.std,
        sampled.standard_error,
    ]
    run("entropy", "train.extxyz", "--sample", "5000", "-o", "all.csv")
    (row,) = rows_of("all.csv")
    assert (row["sample"], row["runs"], row["std"]) == ("48", "1", "nan")
    assert float(row["entropy"]) == information.entropy(x)


def test_an_index_brings_its_bandwidth_and_files_can_have_it_by_volume() -> None:
    x = DescriptorSpec().compute(ase.io.read("train.extxyz", ":"))
    auto = Index.build(ase.io.read("train.extxyz", ":"), bandwidth="auto", threads=1)
    auto.save("auto.qindex")
    run("entropy", "auto.qindex", "-o", "index.csv")
    run("entropy", "train.extxyz", "--bandwidth", "auto", "-o", "files.csv")
    (index,), (files,) = rows_of("index.csv"), rows_of("files.csv")
    assert float(index["bandwidth"]) == float(files["bandwidth"]) == auto.bandwidth
    assert float(files["entropy"]) == information.entropy(x, auto.bandwidth)
    assert float(index["entropy"]) == pytest.approx(float(files["entropy"]), abs=1e-5)


# -- dH and overlap ----------------------------------------------------------------------------------------------------


def test_dh_is_put_beside_all_that_a_frame_had() -> None:
    Path("query.extxyz").write_text(LABELLED)
    before = ase.io.read("query.extxyz", ":")
    run("dh", "query.extxyz", "--index", "si.qindex", "--threshold", "-1", "--threshold", "1000", "-o", "dh.extxyz")
    after = ase.io.read("dh.extxyz", ":")
    index = Index.open("si.qindex")
    for old, new in zip(before, after, strict=True):
        dH = new.arrays.pop("dH")[old.numbers != 0]
        np.testing.assert_array_equal(dH, index.delta_entropy(old))
        assert new.info["dH_max"] == dH.max()
        assert new.info["dH_above_-1"] == np.mean(dH > -1)
        assert new.info["dH_above_1000"] == 0
        assert {key: value for key, value in new.info.items() if not key.startswith("dH_")} == old.info
        assert new.arrays.keys() == old.arrays.keys()
        for name, values in old.arrays.items():
            np.testing.assert_array_equal(new.arrays[name], values)
    first = after[0]
    assert first.calc.results.keys() == before[0].calc.results.keys() >= {"forces", "free_energy", "charges", "dipole"}
    for name, value in before[0].calc.results.items():
        np.testing.assert_array_equal(first.calc.results[name], value)
    assert first.constraints[0].index.tolist() == [2]


def test_a_row_for_every_frame_and_the_same_of_reference_files() -> None:
    run("dh", "test.extxyz", "--reference", "train.extxyz", "--threshold", "0.5", "-o", "dh.csv")
    shown = run("dh", "test.extxyz", "--index", "si.qindex", "--threshold", "0.5", "-o", "dh.json").stdout
    run("dh", "test.extxyz", "--reference", "train.extxyz", "-o", "dh.npy")
    spec, frames = DescriptorSpec(), ase.io.read("test.extxyz", ":")
    x = spec.compute(frames)
    distances = np.linalg.norm(x[:, None] - spec.compute(ase.io.read("train.extxyz", ":"))[None], axis=-1)
    dH = -np.log(np.exp(-0.5 * (distances / 0.015) ** 2).sum(axis=1)).reshape(3, 16)
    np.testing.assert_allclose(np.load("dh.npy"), dH.ravel(), rtol=1e-9, atol=1e-9)
    rows = rows_of("dh.csv")
    assert [row["file"] + row["frame"] for row in rows] == [f"test.extxyz{f}" for f in range(3)]
    assert [row["step"] for row in rows] == ["0", "100", "200"]
    assert [int(row["max_id"]) for row in rows] == dH.argmax(axis=1).tolist()
    for name, values in (("max", dH.max(1)), ("q99", np.quantile(dH, 0.99, axis=1)), ("above_0.5", (dH > 0.5).mean(1))):
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-9, atol=1e-9)
    result = json.loads(Path("dh.json").read_text())
    assert result["above_0.5"] == pytest.approx(np.mean(dH > 0.5))
    assert [frame["max"] for frame in result["frames"]] == pytest.approx(dH.max(axis=1), abs=1e-5)
    assert shown.splitlines()[0].split() == ["n_frames", "n", "max", "mean", "q50", "q99", "above_0.5", "overlap"]


def test_what_dh_wrote_gives_the_same_dh() -> None:
    run("dh", "test.extxyz", "--reference", "train.extxyz", "-o", "dh.extxyz")
    run("dh", "dh.extxyz", "--reference", "train.extxyz", "-o", "dh.npy")
    written = np.concatenate([atoms.arrays["dH"] for atoms in ase.io.read("dh.extxyz", ":")])
    np.testing.assert_array_equal(np.load("dh.npy"), written)


def test_each_frame_against_itself(quests) -> None:
    run("dh", "test.extxyz", "--itself", "--bandwidth", "0.03", "-o", "dh.npy")
    x = [quests.descriptors(atoms, 32, 5.0) for atoms in ase.io.read("test.extxyz", ":")]
    expected = np.concatenate([quests.delta_entropy(some, some, 0.03) for some in x])
    np.testing.assert_allclose(np.load("dh.npy"), expected, rtol=1e-6, atol=1e-8)
    assert "one of them" in run("dh", "test.extxyz", "--itself", "--index", "si.qindex", code=2).stderr


def test_each_group_is_compared_with_the_others() -> None:
    run("overlap", "train.extxyz", "--group-key", "kind", "--others", "--threshold", "2", "-o", "overlap.json")
    frames, spec = ase.io.read("train.extxyz", ":"), DescriptorSpec()
    parts = {name: spec.compute([a for a in frames if a.info["kind"] == name], 1) for name in ("cold", "warm")}
    dH = {
        "cold": delta_entropy(parts["cold"], parts["warm"], 0.015),
        "warm": delta_entropy(parts["warm"], parts["cold"], 0.015),
    }
    dH["(all)"] = np.concatenate(list(dH.values()))
    told = json.loads(Path("overlap.json").read_text())
    assert {row["group"]: row["overlap"] for row in told["results"]} == {k: np.mean(v < 2.0) for k, v in dH.items()}
    assert told["reference"] == {"others": True, "bandwidth": 0.015}


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ((), 2, "compares each group with the others: give --group-key, and no reference"),
        (("--group-key", "kind", "--reference", "train.extxyz"), 2, "and no reference"),
        (("--group-key", "kind", "--threshold", "false_alarm=0.1"), 1, "needs the calibration of an index"),
    ],
)
def test_others_that_cannot_be(options: tuple[str, ...], code: int, says: str) -> None:
    told = run("overlap", "train.extxyz", "--others", *options, code=code).stderr
    assert says in re.sub(r"[\s│]+", " ", told)


def test_one_group_has_no_others() -> None:
    told = run("overlap", "test.extxyz", "--group-key", "kind", "--others", code=1).stderr
    assert "all frames are of the group 'query'" in told


def test_overlap_is_that_of_quests(quests) -> None:
    run(
        "overlap", "test.extxyz", "train.extxyz@:2", "--reference", "train.extxyz", "--group-key", "kind",
        "--threshold", "1e-5", "--threshold", "2", "-o", "overlap.csv",
    )  # fmt: skip
    rows = rows_of("overlap.csv")
    assert [row["group"] for row in rows] == [g for g in ("query", "cold", "warm", "(all)") for _ in range(2)]
    dH = quests.delta_entropy(described("test.extxyz", quests), described("train.extxyz", quests))
    assert [float(row["overlap"]) for row in rows[:2]] == [np.mean(dH < 1e-5), np.mean(dH < 2)]
    assert rows[2]["overlap"] == "1.0"


# -- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["entropy", "train.extxyz"],
        ["entropy", "train.extxyz", "--sample", "20", "--runs", "2"],
        ["learning-curve", "train.extxyz", "--fractions", "0.5,1"],
        ["overlap", "test.extxyz", "--index", "si.qindex"],
        ["dh", "test.extxyz", "--reference", "train.extxyz", "--threshold", "0.5"],
        ["dh", "test.extxyz", "--itself"],
    ],
)
def test_the_precision_and_its_error_are_told_and_held(arguments: list[str]) -> None:
    absolute, relative = information.ERRORS["single"]
    shown = {name: run(*arguments, "--precision", name, "-o", f"{name}.json") for name in ("single", "double")}
    assert shown["double"].stderr == ""
    assert (
        f"single precision: no dH errs by more than max({absolute:g}, {relative:g}·|dH|) nats" in shown["single"].stderr
    )
    single, double = (json.loads(Path(f"{name}.json").read_text()) for name in ("single", "double"))
    assert (single.pop("precision"), double.pop("precision")) == ("single", "double")
    assert single.pop("error") == {"absolute": absolute, "relative": relative}
    assert double.pop("error")["absolute"] < absolute
    pairs = list(zip(flatten(single), flatten(double), strict=True))
    assert any(isinstance(b, float) for _, b in pairs)
    for a, b in pairs:
        close = pytest.approx(b, abs=2 * absolute, rel=2 * relative) if isinstance(b, float) else b
        assert a == close  # twice: 1 − H / ln N, for one, has the error of H


def flatten(value: object) -> list[object]:
    """Return the values in a result, in their order."""
    if isinstance(value, dict):
        return [one for item in value.values() for one in flatten(item)]
    if isinstance(value, list):
        return [one for item in value for one in flatten(item)]
    return [value]


def test_a_threshold_within_the_error_of_single_precision_is_met_as_in_double() -> None:
    run("dh", "test.extxyz", "--reference", "train.extxyz", "-o", "dh.npy")
    for threshold in np.load("dh.npy")[:4]:
        asked = ["test.extxyz", "--reference", "train.extxyz", "--threshold", repr(float(threshold))]
        for verb in ("dh", "overlap"):
            tables = [run(verb, *asked, "--precision", name).stdout.split()[-3:] for name in ("single", "double")]
            assert tables[0][-2:] == tables[1][-2:]


# -- learning curve and bandwidth --------------------------------------------------------------------------------------


def test_a_learning_curve_is_that_of_the_library() -> None:
    run("learning-curve", "train.extxyz", "--fractions", "0.25,1", "--runs", "2", "--seed", "5", "-o", "curve.json")
    x = DescriptorSpec().compute(ase.io.read("train.extxyz", ":"))
    curve = information.learning_curve(x, (0.25, 1.0), 2, seed=5)
    rows = json.loads(Path("curve.json").read_text())["results"]
    assert [row["sample"] for row in rows] == [12, 48]
    assert [row["entropies"] for row in rows] == [some.entropies.tolist() for some in curve.samples]
    assert [row["entropy"] for row in rows] == curve.mean.tolist()


def test_bandwidths_of_files_and_of_a_volume(quests) -> None:
    run("bandwidth", "train.extxyz", "-o", "h.json")
    result = json.loads(Path("h.json").read_text())
    found = {row["rule"]: row["bandwidth"] for row in result["results"]}
    volume = bulk("Si").get_volume() / 2
    assert found["volume, gaussian"] == pytest.approx(quests.bandwidth(volume, "gaussian"), rel=1e-9)
    assert found["volume, cutoff"] == pytest.approx(quests.bandwidth(volume, "cutoff"), rel=1e-9)
    x = DescriptorSpec().compute(ase.io.read("train.extxyz", ":"))
    assert found["likelihood"] == result["likelihood"]["bandwidth"] == information.likelihood_bandwidth(x).bandwidth
    shown = run("bandwidth", "--volume", str(volume)).stdout
    assert [line.split()[-1] for line in shown.splitlines()[1:]] == [
        f"{found[rule]:.6g}" for rule in ("volume, gaussian", "volume, cutoff")
    ]


# -- all of them -------------------------------------------------------------------------------------------------------


def test_own_descriptors_go_everywhere() -> None:
    x = np.load("own.npy")
    run("entropy", "own.npy", "-o", "h.csv", "--bandwidth", "0.02")
    assert float(rows_of("h.csv")[0]["entropy"]) == information.entropy(x, 0.02)
    run("dh", "own.npy", "--reference", "own.npy", "-o", "dh.npy", "--bandwidth", "0.02")
    np.testing.assert_array_equal(np.load("dh.npy"), delta_entropy(x, x, 0.02))
    assert run("overlap", "own.npy", "--reference", "own.npy", "--bandwidth", "0.02").stdout.split()[-1] == "1"
    run("learning-curve", "own.npy", "--fractions", "0.5", "--bandwidth", "0.02")
    assert "give --bandwidth H in it" in run("entropy", "own.npy", code=1).stderr
    for scale in (1.0, 1e6):  # the bandwidths that are tried follow the unit
        np.save("scaled.npy", scale * x)
        found = run("bandwidth", "scaled.npy")
        assert found.stderr == ""
        tried = np.geomspace(1e-3, 1.0, 41) * np.sqrt(2.0 * x.var(axis=0).sum())
        expected = information.likelihood_bandwidth(x, tried.tolist()).bandwidth
        assert float(found.stdout.split()[-1]) == pytest.approx(scale * expected, rel=1e-4)


@pytest.mark.parametrize(
    ("suffix", "arguments"),
    [
        ("png", ["entropy", "train.extxyz"]),
        ("svg", ["entropy", "train.extxyz", "--group-key", "kind", "--sample", "10"]),
        ("pdf", ["entropy", "train.extxyz", "--bandwidth", "0.01", "--bandwidth", "0.02"]),
        ("png", ["dh", "test.extxyz", "--index", "si.qindex", "--threshold", "3"]),
        ("png", ["overlap", "test.extxyz", "--index", "si.qindex"]),
        ("png", ["learning-curve", "train.extxyz", "--fractions", "0.5,1"]),
        ("png", ["bandwidth", "train.extxyz"]),
    ],
)
def test_every_verb_draws_itself(suffix: str, arguments: list[str]) -> None:
    run(*arguments, "--plot", f"picture.{suffix}")
    assert Path(f"picture.{suffix}").read_bytes().startswith(DRAWN[suffix])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["entropy", "none.xyz"], "none.xyz: no such file"),
        (["entropy", "train.extxyz", "own.npy"], "own.npy is a dataset of its own"),
        (["entropy", "si.qindex", "--k", "16"], "si.qindex was built with k = 32, but 16 is asked for"),
        (["entropy", "train.extxyz", "--bandwidth", "auto", "--k", "16"], "holds for k = 32"),
        (["entropy", "broken.extxyz"], "broken.extxyz: step 0: 1 atoms have positions that are not finite"),
        (["entropy", "train.extxyz", "--group-key", "absent"], "frame 0 has no 'absent' in its info"),
        (["dh", "train.extxyz", "broken.extxyz", "--index", "si.qindex"], "broken.extxyz: frame 0: step 0: 1 atoms"),
        (["dh", "other.extxyz", "--index", "si.qindex"], "Ge is not in the index"),
        (["dh", "other.extxyz", "--reference", "train.extxyz"], "Ge is the centre of no environment of the reference"),
        (["dh", "train.extxyz", "--index", "si.qindex", "--bandwidth", "0.1"], "a bandwidth of 0.015 1/Å, but 0.1"),
        (["dh", "train.extxyz", "--index", "si.qindex", "--species", "full"], "without a choice of species"),
        (["dh", "train.extxyz", "--reference", "own.npy", "--bandwidth", "1"], "train.extxyz must be an array"),
        (
            ["overlap", "own.npy", "--index", "si.qindex"],
            "own.npy holds own descriptors: they are compared with others of their kind only",
        ),
        (["learning-curve", "train.extxyz", "--fractions", "0.001"], "a share of 0.001 of 48 rows is none"),
    ],
)
def test_errors_are_one_line_and_write_nothing(arguments: list[str], says: str) -> None:
    (broken, other) = (bulk("Si", cubic=True) for _ in range(2))
    broken.positions[3, 0] = np.nan
    other.numbers[:] = 32
    ase.io.write("broken.extxyz", broken)
    ase.io.write("other.extxyz", other)
    result = run(*arguments, "-o", "result.json", code=1)
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("result.json").exists()


def test_geometry_alone_is_compared_where_that_is_asked_for() -> None:
    other = ase.io.read("train.extxyz")
    other.numbers[:] = 32
    ase.io.write("other.extxyz", other)
    shown = run("overlap", "other.extxyz", "--reference", "train.extxyz", "--species", "ignore").stdout
    assert shown.split()[-1] == "1"


def test_files_are_replaced_only_if_told_and_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("h.json", "h.png"):
        Path(name).write_text("old")
    for option, name in (("-o", "h.json"), ("--plot", "h.png")):
        stderr = run("entropy", "train.extxyz", option, name, code=1).stderr
        assert f"{name} exists: choose another name, or give --overwrite" in stderr
        assert Path(name).read_text() == "old"
    assert "must end with .json or .csv" in run("entropy", "train.extxyz", "-o", "h.txt", code=1).stderr
    run("entropy", "train.extxyz", "-o", "h.json", "--overwrite")
    assert json.loads(Path("h.json").read_text())["n_env"] == 48
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'quests_md[plot]'" in run("entropy", "train.extxyz", "--plot", "x.png", code=1).stderr


@pytest.mark.parametrize("reference", [[], ["--index", "si.qindex", "--reference", "train.extxyz"]])
def test_one_reference_is_needed(reference: list[str]) -> None:
    assert "either --index INDEX or --reference FILE" in run("dh", "test.extxyz", *reference, code=2).stderr


# -- the manual --------------------------------------------------------------------------------------------------------

PAGE = (DOCS / "datasets.md").read_text(encoding="utf-8")


def plain(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def number(word: str) -> object:
    """Return what equals a number to five digits, or the word."""
    value = plain(word)
    return value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-9)


def test_the_commands_of_the_manual_print_what_it_shows() -> None:
    example, python = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    names: dict[str, object] = {}
    for name in ("train.extxyz", "test.extxyz", "own.npy", "si.qindex"):
        Path(name).unlink()  # a link to what the other tests use
    exec(example, names)
    commands = 0
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.M | re.S):
        for command, shown in re.findall(r"^\$ quests-md (.*)\n((?:[^$].*\n)*)", block, re.M):
            printed = run(*shlex.split(command)).stdout
            if shown:
                assert [*map(plain, printed.split())] == [*map(number, shown.split())], command
            commands += 1
    assert commands >= 15
    exec(python, names)


@pytest.mark.parametrize("verb", ["bandwidth", "dh", "entropy", "learning-curve", "overlap"])
def test_the_manual_names_every_verb_and_option_of_its_own(verb: str) -> None:
    assert f"$ quests-md {verb} " in PAGE
    command = cli.main.get_command(None, verb)  # type: ignore[attr-defined]
    own = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    absent = {option for option in own if option not in PAGE} - {"--help"}
    assert not absent
