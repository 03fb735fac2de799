"""The page "What do I have, and what should I add?": its commands, one after the other, on a small training set."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner
from paths import DOCS

from quests_md import Index, cli


def frames(seeds: range, scale: float, group: str) -> list[Atoms]:
    """Return labelled frames of copper."""
    made = []
    for seed in seeds:
        atoms = bulk("Cu", cubic=True) * (2, 2, 1)
        atoms.rattle(scale, seed=seed)
        atoms.info["group"] = group
        atoms.calc = EMT()
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        made.append(atoms)
    return made


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("training.xyz", frames(range(15), 0.05, "cold") + frames(range(15, 30), 0.1, "warm"), format="extxyz")
    ase.io.write("test.xyz", frames(range(30, 34), 0.05, "cold") + frames(range(34, 38), 0.2, "hot"), format="extxyz")
    ase.io.write("md.xyz", frames(range(40, 64), 0.2, "hot"), format="extxyz")
    Path("oracle.toml").write_text('calculator = "ase.calculators.emt:EMT"\nstress = false\n')
    page = (DOCS / "what_to_add.md").read_text(encoding="utf-8")
    said = {}
    for line in re.findall(r"^\$ quests-md (.*)$", page, re.M):
        done = CliRunner().invoke(cli.main, shlex.split(line))
        assert done.exit_code == 0, f"{line}\n{done.output}"
        said[line] = done.stdout
    assert len(said) == 13
    alone = next(text for line, text in said.items() if "--others" in line)
    assert {row.split()[0] for row in alone.splitlines()[1:]} == {"cold", "warm", "(all)"}
    before, after = Index.open("ref.qindex"), Index.open("ref-1.qindex")
    assert len(after) - len(before) == sum(map(len, ase.io.read("labelled.extxyz", ":"))) > 0
    assert (
        after.delta_entropy(ase.io.read("md.xyz", ":")).max() < before.delta_entropy(ase.io.read("md.xyz", ":")).max()
    )
    assert {path.suffix for path in Path().glob("*.*")} >= {".png", ".html", ".csv"}
