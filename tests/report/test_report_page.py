"""The page of a run, a dataset or an index: what it says. `test_report_browser.py` opens it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
from ase.neighborlist import neighbor_list
from click.testing import CliRunner
from watched import CANDIDATE, COVERED, HALTING, atoms_of, build_index, frame_of, session_of

from quests_md import DescriptorSpec, Frame, Index, report
from quests_md.cli import main
from quests_md.errors import InputError, MissingExtraError, MonitorError
from quests_md.index import calibrate
from quests_md.information import information, overlap
from quests_md.report import dataset_page, run_page, timeline
from quests_md.report._drawings import _thin
from quests_md.report._page import build_scene

HOSTILE = "<script>window.pwned = 1</script><img src=x onerror=alert(1)> $\\frac \"'"


class Reader(HTMLParser):
    """What a browser would find: the tags, the text, and the cells of tables."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.links = [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]

    def handle_data(self, data):
        if self.get_starttag_text() and not self.get_starttag_text().startswith(("<script", "<style")):
            self.words.append(data)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    made = build_index()
    made.calibration = calibrate(made, threads=1)
    made.save(tmp_path_factory.mktemp("index") / "cu.qindex")
    return made


@pytest.fixture(scope="module")
def halted(index, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "uq"
    with session_of(index, folder) as session:
        for step in range(6):
            session.observe(frame_of(step, (COVERED, COVERED, COVERED, CANDIDATE, CANDIDATE, HALTING)[step]))
    return folder


def data_of(html):
    """Return what the scripts of a page are given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(found[1]) if found else {"scenes": []}


# -- runs ----------------------------------------------------------------------------------------------------------


def test_the_page_of_a_run_holds_what_its_files_hold(index, halted):
    html = run_page(halted, worst=2)
    page = Reader(html)
    run = json.loads((halted / "run.json").read_text())
    assert "halted" in page.text
    assert run["reason"][1:] in page.text
    assert run["index"]["hash"] in page.text
    for file in ("monitor.csv", "run.json", "candidates.extxyz", "last.extxyz"):
        assert f"{file} {(halted / file).stat().st_size}" in page.text
        assert hashlib.sha256((halted / file).read_bytes()).hexdigest() in page.text
    table = np.genfromtxt(halted / "monitor.csv", delimiter=",", names=True, usecols=range(9))
    assert f"{table['max'].max():.5g} nats atom {table['max_id'][-1]:.0f} at step 5" in page.text
    assert "left-out frames of the reference" in page.text  # the index was found, and has a calibration
    scenes = data_of(html)["scenes"]
    assert [scene["title"].split(",")[0] for scene in scenes] == ["step 5", "step 3"]
    assert scenes[0]["atoms"][0]["value"] == pytest.approx(table["max"].max(), abs=1e-6)
    assert scenes[0]["atoms"][0]["id"] == table["max_id"][-1]


def test_a_page_asks_for_nothing(halted):
    page = Reader(run_page(halted))
    assert page.links == ["data:,"]
    assert "default-src 'none'" in run_page(halted)
    assert page.tags.count("script") == 4  # data, 3Dmol, the view, the tables


@pytest.mark.parametrize("state", ["running", "empty", "one row", "failed", "broken rows"])
def test_a_run_in_any_state_has_a_page(index, tmp_path, state):
    folder = tmp_path / "uq"
    session = session_of(index, folder, implausible="stop")
    if state != "empty":
        session.observe(frame_of(0))
    if state == "failed":
        broken = frame_of(1)
        broken.positions[0] = broken.positions[1]
        with pytest.raises(MonitorError):
            session.observe(broken)
    if state == "broken rows":
        session.close()
        with open(folder / "monitor.csv", "a") as file:
            file.write("1,20,0.0,nan,1.0,0,1.0,1.0,1.0,0,0,covered,0,exact,0.0,0,nan,nan,0,1.0/1.0,0,nan,\n1,20,0.0")
        (folder / "last.extxyz").write_text("32\nhalf a frame")
    html = run_page(folder)
    if state in ("one row", "failed"):
        session.close()
        html = run_page(folder)
    page = Reader(html)
    wanted = {
        "running": "running The run was going on when this page was made",
        "empty": "No step was evaluated: there is nothing to draw.",
        "one row": "finished The run ended by itself at step 0.",
        "failed": "Implausible frames step time (ps) reason 1 0.001",
        "broken rows": "1 row of monitor.csv cannot be read",
    }
    assert wanted[state] in page.text
    assert len(data_of(html)["scenes"]) == (1 if state in ("one row", "failed") else 0)
    session.close()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"saved": "many"}, "saved is 'many'"),
        ({"index": {"k": "32"}}, "k is '32'"),
        ({"thresholds": {"select": {"": "high"}}}, "thresholds are"),
    ],
)
def test_a_run_json_of_other_kinds_is_refused(tmp_path, changed, said):
    (tmp_path / "run.json").write_text(json.dumps({"index": {}, **changed}))
    with pytest.raises(InputError, match=f"not as a run wrote it: {said}"):
        run_page(tmp_path)


def test_a_run_whose_index_has_no_file_says_so(tmp_path):
    with session_of(build_index(), tmp_path) as session:  # as in a script that builds its index in memory
        session.observe(frame_of(0, COVERED))
    text = Reader(run_page(tmp_path)).text
    assert "The index of this run was not saved to a file" in text
    assert "None" not in text
    assert "learned in the run" not in text


def test_a_run_without_its_index_says_so(index, halted, tmp_path):
    run = json.loads((halted / "run.json").read_text())
    run["index"]["path"] = "gone.qindex"
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "monitor.csv").write_bytes((halted / "monitor.csv").read_bytes())
    assert "gone.qindex is not there any more" in Reader(run_page(tmp_path)).text
    assert "left-out frames of the reference" in run_page(tmp_path, index=index)
    other = Index.build([atoms_of(COVERED, 9)], threads=1)
    with pytest.raises(InputError, match="is not the index that"):
        run_page(tmp_path, index=other)


def test_an_index_that_was_calibrated_after_the_run_is_still_the_one(index, halted, tmp_path):
    run = json.loads((halted / "run.json").read_text())
    run["index"]["hash"] = "0" * 64
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "monitor.csv").write_bytes((halted / "monitor.csv").read_bytes())
    text = Reader(run_page(tmp_path)).text
    assert "its hash has changed" in text
    assert "left-out frames of the reference" in text


def test_thresholds_of_elements_and_infinite_ones_are_drawn(index, tmp_path):
    with session_of(index, tmp_path / "uq", select={"Cu": 2.0}, halt=float("inf")) as session:
        session.observe(frame_of(0))
    (axes,) = timeline(tmp_path / "uq").axes
    assert [text.get_text() for text in axes.texts] == ["select"]
    assert "inf nats" in Reader(run_page(tmp_path / "uq")).text


def test_hostile_strings_stay_text(halted, tmp_path):
    for file in halted.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    run = json.loads((halted / "run.json").read_text())
    run |= {"reason": HOSTILE, "host": HOSTILE, "status": HOSTILE, "thresholds": {"select": {HOSTILE: 1.0, "Si": 2.0}}}
    run["index"]["path"] = HOSTILE
    (tmp_path / "run.json").write_text(json.dumps(run))
    frames = ase.io.read(halted / "candidates.extxyz", ":")
    frames[0].info["band"] = HOSTILE
    ase.io.write(tmp_path / "candidates.extxyz", frames)
    html = run_page(tmp_path)
    assert "<script>window" not in html
    assert "<img" not in html
    assert Reader(html).tags.count("script") == 4
    named = atoms_of(COVERED)
    html = dataset_page([Frame.from_atoms(named, group=HOSTILE)], title=HOSTILE, threads=1)
    assert "<script>window" not in html
    assert "<img" not in html


def test_of_a_long_run_the_worst_of_each_stretch_is_drawn():
    rows = np.zeros(2501, [("max", float), ("time", float), ("step", int)])
    rows["step"] = np.arange(2501)
    rows["max"][[0, 1234, 2500]] = 5.0, 50.0, 7.0
    rows["max"][100] = np.inf
    few, every = _thin(rows)
    assert (every, len(few["step"])) == (5, 501)
    assert {0, 1234, 2500} <= set(few["step"].tolist())


def test_the_vendored_library_is_the_one_that_is_named():
    folder = Path(report.__file__).parent / "vendor"
    assert hashlib.sha256((folder / "3Dmol-min.js").read_bytes()).hexdigest() in (folder / "README.md").read_text()


# -- environments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["triclinic", "small", "nacl", "one"])
def test_a_scene_has_the_neighbours_within_the_cutoff(structure, name):
    atoms = structure(name)
    i, distances = neighbor_list("id", atoms, 5.0)
    atoms.positions += (
        7.3 * atoms.cell[0] - 2.1 * atoms.cell[2]
    )  # dH knows no cell an atom is in, and the scene neither
    worst = len(atoms) - 1
    scene = build_scene(Frame.from_atoms(atoms), np.arange(len(atoms), dtype=float), worst, 5.0, 4, "")
    wanted = np.sort(distances[i == worst])[:299]
    assert np.linalg.norm(scene.positions[1:], axis=1) == pytest.approx(wanted, abs=1e-9)
    assert not scene.positions[0].any()
    assert scene.ids[0] == scene.values[0] == worst
    assert scene.values.tolist() == scene.ids.tolist()  # images have what their atom has
    assert scene.nearest.sum() == 1 + min(4, len(wanted))


def test_the_nearest_of_a_scene_are_counted_by_element_where_the_descriptor_does(structure):
    scene = build_scene(Frame.from_atoms(structure("nacl")), np.zeros(8), 0, 5.0, 4, "", by_element=True)
    of_na = [near for near, symbol in zip(scene.nearest[1:], scene.symbols[1:], strict=True) if symbol == "Na"]
    assert sum(of_na) == 4
    assert scene.nearest.sum() == 9


def test_the_colours_go_from_the_least_to_the_worst(structure):
    dH = np.full(64, -3.0)
    dH[5], dH[6] = 9.0, np.nan
    scene = build_scene(Frame.from_atoms(structure("si_rattled")), dH, 5, 5.0, 32, "")
    assert scene.span == (-3.0, 9.0)
    assert scene.colours[0] == "#D73027"
    assert set(scene.colours[1:]) <= {"#4575B4", "#A0A0A0"}


# -- datasets ------------------------------------------------------------------------------------------------------


def test_the_page_of_a_dataset_holds_its_information(index):
    atoms = [atoms_of(scale, 7) for scale in (COVERED, CANDIDATE)]
    frames = [Frame.from_atoms(a, group=name) for a, name in zip(atoms, "ab", strict=True)]
    html = dataset_page(frames, index=index, threads=1)
    held = information(index.spec.compute(frames), index.bandwidth)
    text = Reader(html).text
    assert f"Entropy H {held.entropy:.4f} nats" in text
    assert f"Diversity D {held.diversity:.4f} nats" in text
    assert f"Information gap {held.information_gap:.4f} nats" in text
    dH = index.delta_entropy(frames)
    covered = overlap(index.spec.compute(frames), index.rows + index.centre, index.bandwidth)
    assert f"Overlap with the index {covered:.2%}" in text
    assert f"Largest dH {dH.max():.5g} nats" in text
    assert "Groups" in text
    assert [scene["atoms"][0]["value"] for scene in data_of(html)["scenes"]] == pytest.approx(
        sorted([dH[:32].max(), dH[32:].max()], reverse=True), abs=1e-5
    )


def test_an_index_has_a_page_without_environments(index):
    html = dataset_page(index, threads=1)
    text = Reader(html).text
    assert "An index holds no atoms: no environments are drawn." in text
    assert index.hash in text
    assert data_of(html)["scenes"] == []
    assert len(html) < 400_000  # the library of the view is left out


def test_a_dataset_is_compared_only_with_an_index_of_its_descriptor(index):
    with pytest.raises(InputError, match="the index was built with"):
        dataset_page([atoms_of(COVERED)], spec=DescriptorSpec(k=8), index=index)
    with pytest.raises(InputError, match="the index has the bandwidth"):
        dataset_page([atoms_of(COVERED)], bandwidth=0.5, index=index)
    with pytest.raises(InputError, match="the dataset is empty"):
        dataset_page([])


def test_without_jinja_the_pip_line_is_told(halted, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"jinja2 is missing.*pip install 'quests_md\[report\]'"):
        run_page(halted)


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def cli(halted, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ase.io.write("set.xyz", [atoms_of(COVERED), atoms_of(CANDIDATE)])
    names = SimpleNamespace(run=str(halted), index=str(index.path), set="set.xyz", output=tmp_path / "report.html")
    names.call = lambda *words: CliRunner().invoke(main, ["report", *words, "-o", "report.html", "--threads", "1"])
    return names


def test_report_writes_one_file(cli):
    for words in ([cli.run], ["set.xyz", "--index", cli.index], ["set.xyz@0", "--k", "8"], [cli.index]):
        done = cli.call(*words, "--overwrite")
        assert done.exit_code == 0, done.output
        assert cli.output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert cli.call(cli.run).exit_code == 1
    assert "report.html exists" in cli.call(cli.run).output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.xyz"], "nothing.xyz: no such file"),
        (["."], "run.json: no such file"),
        (["RUN", "set.xyz"], "is a folder: give the output of one run alone"),
        (["RUN", "--k", "8"], "is a run, with descriptor and bandwidth of its own"),
        (["INDEX", "set.xyz"], "is a dataset of its own"),
        (["set.xyz", "--index", "INDEX", "--cutoff", "4"], "was built with cutoff = 5.0 Å, but 4.0 Å is asked for"),
        (["set.xyz", "--index", "INDEX", "--species", "full"], "the index has species"),
        (["x.npy"], "own descriptors have no atoms"),
    ],
)
def test_report_says_what_it_cannot_do(cli, words, message):
    done = cli.call(*({"RUN": cli.run, "INDEX": cli.index}.get(word, word) for word in words))
    assert done.exit_code == 1
    assert message in done.output
    assert not cli.output.exists()
