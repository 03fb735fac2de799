"""quests-md learn."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from loops import written
from paths import DOCS
from rich.console import Console
from rich.progress import Progress

from quests_md.cli import main
from quests_md.cli.loop_verbs import COLUMNS, Bar
from quests_md.learning import _loop


def test_a_file_is_checked(tmp_path):
    path = written(tmp_path)
    done = CliRunner().invoke(main, ["learn", str(path), "--check"])
    assert (done.exit_code, done.output) == (0, f"{path}: right\n")
    assert not (tmp_path / "out").exists()


def test_a_wrong_file_is_said_in_a_line(tmp_path):
    path = written(tmp_path, stop={"generation": 3})
    done = CliRunner().invoke(main, ["learn", str(path)])
    assert done.exit_code == 1
    assert done.output.startswith(f"quests-md: error: {path}: [stop]: unknown key 'generation'; did you mean")


@pytest.mark.lammps
def test_a_loop_and_what_one_sees(tmp_path):
    path = written(tmp_path, stop={"generations": 2})
    done = CliRunner().invoke(main, ["learn", str(path)])
    assert done.exit_code == 3, done.output
    for line in (
        "generation 0: check: 3 frames\n",
        "generation 0: train: 10 frames\n",
        "generation 0: explore: 2 explorations\n",
        "generation 0: label: 4 frames\n",
        "generation  frames  labels  failed  force error  covered  first halt/ps\n",
        "to the limit of 2 generations, if they take as long\n",
        "generations: the limit of 2 generations is reached; ",
        f"files in {tmp_path / 'out'}\n",
    ):
        assert line in done.output
    assert (tmp_path / "out" / "learning.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "learning.json").read_text())["status"] == "generations"


def test_a_terminal_has_a_bar_for_the_stage():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    rows = []
    row = {"generation": 0, "training_frames": 10, "labels": 4, "failed": 0, "force_rmse": 0.1, "covered_share": 0.9}
    with Progress(*COLUMNS, console=console) as progress:
        bar = Bar(progress, 2, rows.append)
        bar.stage(0, "label", 4)
        bar.step(3, "frame 3: done")
        (task,) = progress.tasks
        assert (task.description, task.completed, task.total) == ("generation 0: label", 3, 4)
        bar.row({**row, "first_halt_ps": None})
    assert "frame 3: done" in console.file.getvalue()
    assert "0.1000" in console.file.getvalue()
    assert len(rows) == 1


def test_the_manual_knows_every_column():
    text = (DOCS / "learning.md").read_text("utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert [name for name in _loop.COLUMNS if not any(f"`{name}`" in row for row in rows)] == []
