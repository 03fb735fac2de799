"""The manual: its examples run, and its tables hold every column, key and error there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from paths import DOCS, ROOT

from quests_md import errors
from quests_md.config import write_tables
from quests_md.index import _file
from quests_md.labelling import Oracle
from quests_md.labelling._convergence import format_codes
from quests_md.recording.rows import COLUMNS
from quests_md.toml import make_settings, tomllib
from quests_md.training import CommandTrainer, PodTrainer

WITH_EXAMPLES = [
    "ase.md",
    "compression.md",
    "cutouts.md",
    "force_errors.md",
    pytest.param("inline.md", marks=pytest.mark.lammps),
    "labelling.md",
    "live_reference.md",
    "method.md",
    "nuclei.md",
    "own_descriptors.md",
    "queue.md",
    "reference_index.md",
    "report.md",
    "thermo.md",
    "thresholds.md",
    pytest.param("training.md", marks=pytest.mark.lammps),
    pytest.param("viewing.md", marks=pytest.mark.viewers),
]
NEEDED = {
    "inline.md": ["lammps"],
    "own_descriptors.md": ["dscribe.descriptors"],
    "training.md": ["lammps"],
    "viewing.md": ["ovito.io", "MDAnalysis"],
}


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDED.get(name, []):
        pytest.importorskip(module, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text(name), re.M | re.S))
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        line = text(name)[: block.start()].count("\n") + 1
        code = "\n" * line + block.group(1)  # so that a traceback shows the line of the page
        exec(compile(code, str(DOCS / name), "exec"), names)


def test_the_ase_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS.parent / "README.md").read_text("utf-8"), re.M | re.S)
    (example,) = [block for block in blocks if "lammps" not in block]
    exec(compile(example, "README.md", "exec"), {})
    assert len((tmp_path / "uq" / "monitor.csv").read_text().splitlines()) == 1 + 21


def test_every_column_of_monitor_csv_is_documented() -> None:
    assert [c for c in COLUMNS if f"| `{c}`" not in text("monitor.md")] == []


def test_every_key_of_the_configuration_is_documented() -> None:
    assert write_tables() in text("configuration.md"), "a key is not what the page says: run scripts/write-keys"


def test_every_key_of_an_oracle_is_documented() -> None:
    assert [key for key in Oracle.model_fields if f"| `{key}`" not in text("labelling.md")] == []


def test_every_oracle_of_the_manual_is_one() -> None:
    files = re.findall(r"^```toml\n(.*?)^```$", text("labelling.md"), re.M | re.S)
    assert len(files) == 8
    for file in files:
        make_settings(Oracle, tomllib.loads(file), "labelling.md")


def test_the_manual_shows_the_table_of_unconverged_runs() -> None:
    assert format_codes() in text("labelling.md"), "the table is quests_md.labelling._convergence.format_codes()"


def test_every_key_of_the_trainers_is_documented() -> None:
    keys = [*PodTrainer.model_fields, *CommandTrainer.model_fields]
    assert [key for key in keys if f"`{key}`" not in text("training.md")] == []


def test_every_section_of_the_index_file_is_documented() -> None:
    assert [name for name in _file.SECTIONS if f"| `{name}`" not in text("reference_index.md")] == []


def test_every_error_is_documented() -> None:
    assert [name for name in errors.__all__ if name not in text("api.md")] == []


def test_the_page_of_the_design_names_every_file():
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    table = page[page.index("## Rooms and files") : page.index("## The way of one frame")]
    package = ROOT / "quests_md"
    names = {path.stem if path.parent != package else path.name for path in package.rglob("*.py")} - {"__init__.py"}
    assert sorted(name for name in names if f"`{name}`" not in table and f"`quests_md.{name[:-3]}`" not in table) == []


def test_the_page_of_the_design_names_no_file_that_is_gone():
    page = (DOCS / "design.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", page)
    assert named
    assert [name for name in named if not (ROOT / "quests_md" / name).is_file()] == []
