"""quests-md learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from loops import settings, write_frames

from quests_md.cli import main
from quests_md.config import _toml


def written(folder, **changes):
    """Write learn.toml, and the files that it names; return its path."""
    write_frames(folder)
    path, values = folder / "learn.toml", settings(folder, **changes)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for table, of in values.items():
        if isinstance(of, dict):
            lines += [f"[{table}]", *(f"{key} = {_toml(value)}" for key, value in of.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


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
        "generation 0: check: 3 frames\n", "generation 0: train: 10 frames\n",
        "generation 0: explore: 2 explorations\n", "generation 0: label: 4 frames\n", "generation  frames  labels  failed  force error  covered  first halt/ps\n",
        "to the limit of 2 generations, if they take as long\n", "generations: the limit of 2 generations is reached; ",
        f"files in {tmp_path / 'out'}\n",
    ):  # fmt: skip
        assert line in done.output
    assert (tmp_path / "out" / "learning.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "learning.json").read_text())["status"] == "generations"


def test_the_manual_knows_every_column():
    from quests_md.learning._record import COLUMNS

    text = (Path(__file__).parent.parent / "docs" / "learning.md").read_text("utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert [name for name in COLUMNS if not any(f"`{name}`" in row for row in rows)] == []
