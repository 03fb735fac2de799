"""The files that package the project agree with it: one version, one list of dependencies, real paths."""

from __future__ import annotations

import os
import re
from importlib.metadata import requires

import pytest
from paths import ROOT

import quests_md
from quests_md.toml import tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("packaging/conda/recipe.yaml", r'^  version: "(.+)"$'),
        ("CITATION.cff", r"^version: (.+)$"),
        ("CHANGELOG.md", r"^## \[(.+)\] - \d{4}-\d\d-\d\d$"),
    ],
)
def test_every_file_has_the_one_version(file: str, pattern: str) -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    found = re.search(pattern, text(file), re.M)
    assert found is not None
    assert found.group(1) == quests_md.__version__


def test_the_date_of_the_release_is_one() -> None:
    (date,) = re.findall(r"^date-released: (.+)$", text("CITATION.cff"), re.M)
    assert f"## [{quests_md.__version__}] - {date}\n" in text("CHANGELOG.md")


def test_the_recipe_needs_what_the_project_needs() -> None:
    needed = {
        line.replace(">=", " >=").partition(";")[0] for line in requires("quests_md") or [] if "extra" not in line
    }
    run = text("packaging/conda/recipe.yaml").partition("  run:\n")[2].partition("  run_constraints:")[0]
    given = {line.strip("- ") for line in run.splitlines()}
    assert {name.strip() for name in needed} <= given


def test_the_workflow_runs_what_ci_runs_in_the_pythons_of_the_project() -> None:
    workflow = text(".github/workflows/ci.yml")
    for program in (".ci/run", "scripts/packages"):
        assert f"run: {program}\n" in workflow
        assert os.access(ROOT / program, os.X_OK)
    pythons = re.findall(r'"(3\.\d+)"', workflow)
    prefix = "Programming Language :: Python :: "
    classifiers = [one.removeprefix(prefix) for one in PROJECT["project"]["classifiers"] if one.startswith(prefix)]
    assert pythons == [one for one in classifiers if "." in one]
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"


def test_the_container_has_extras_and_folders_that_exist() -> None:
    container = text("packaging/Containerfile")
    (extras,) = re.findall(r'"/src\[(.+)\]"', container)
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_the_manifest_names_what_exists() -> None:
    lines = [line.split() for line in text("MANIFEST.in").splitlines()]
    names = [name for command, *rest in lines if command in ("include", "graft") for name in rest]
    assert [name for name in names if not (ROOT / name).exists()] == []
