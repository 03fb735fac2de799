"""Tries an installed quests_md, in an empty folder: what scripts/packages runs in each environment."""

import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import ase.io
from ase.build import bulk

import quests_md


def call(*words: str) -> str:
    done = subprocess.run(["quests-md", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"quests-md {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


assert Path(sys.prefix) in Path(quests_md.__file__).parents, f"{quests_md.__file__} is not of this environment"
assert quests_md.__version__ == version("quests_md")
assert files("quests_md").joinpath("py.typed").is_file()
assert files("quests_md").joinpath("report", "templates").is_dir()
frames = [bulk("Si", cubic=True) for _ in range(30)]
for seed, atoms in enumerate(frames):
    atoms.rattle(0.05, seed=seed)
    atoms.info["step"] = seed
ase.io.write("training.xyz", frames)
assert quests_md.__version__ in call("--version")
call("index", "build", "training.xyz", "-o", "ref.qindex", "--bandwidth", "auto")
call("config", "init")
text = Path("quests.toml").read_text().replace("reference.qindex", "ref.qindex").replace("0.01", "0.1")
Path("quests.toml").write_text(text)
assert "left-out frames of the reference above" in call("config", "check")
call("watch", "training.xyz", "--config", "quests.toml")
assert len(quests_md.read_run("uq").rows) == len(frames)
assert "self-test: passed" in call("doctor")
