"""The examples at the end of the help of every verb: two for each, in this one place."""

from __future__ import annotations

import copy

import click

__all__ = ["BEGIN", "EXAMPLES", "add_examples"]

# What `quests-md --help` ends with: a command, and what it does.
BEGIN = (
    ("quests-md doctor", "is it all there?"),
    ("quests-md warm-up", "compiles all of it now"),
    ("quests-md index build training.xyz -o ref.qindex", "what the potential knows"),
    ("quests-md config init", "writes quests.toml"),
    ("quests-md config check --atoms 1000", "what it means"),
    ("quests-md run in.lammps --config quests.toml", "a watched run"),
    ("quests-md report uq -o report.html", "what happened"),
)

# A test runs them in this order, in one folder: what one writes, a later one may read.
EXAMPLES: dict[str, tuple[str, str]] = {
    "bandwidth": (
        "quests-md bandwidth training.xyz --plot likelihood.png",
        "quests-md bandwidth --volume 20.0",
    ),
    "index build": (
        "quests-md index build training.xyz -o ref.qindex --bandwidth auto",
        "mpiexec -n 4 quests-md index build aimd.xyz@::2 alloy.xyz --species neighbours --group-key kind -o all.qindex",
    ),
    "index info": ("quests-md index info ref.qindex", "quests-md index info ref.qindex --json"),
    "index verify": ("quests-md index verify ref.qindex", "quests-md index verify all.qindex"),
    "index residuals": (
        "quests-md index residuals ref.qindex training.xyz --calculator ase.calculators.emt:EMT",
        "quests-md index residuals ref.qindex training.xyz --lammps eam.txt --add",
    ),
    "index calibrate": (
        "quests-md index calibrate ref.qindex --potential EMT",
        "quests-md index calibrate ref.qindex --errors labelled.xyz --coverage 0.5 --potential EMT",
    ),
    "index extend": (
        "quests-md index extend ref.qindex labelled.xyz -o ref-1.qindex",
        "quests-md index extend all.qindex more.xyz --group-key kind -o all-1.qindex",
    ),
    "config init": ("quests-md config init", "quests-md config init melt.toml"),
    "config check": (
        "quests-md config check --atoms 32",
        "quests-md config check melt.toml --atoms Cu=32 --json",
    ),
    "run": (
        "quests-md run in.lammps --config quests.toml -log none",
        "mpiexec -n 4 quests-md run in.lammps --config quests.toml -var T 900",
    ),
    "watch": (
        "quests-md watch md.xyz --config quests.toml -o again",
        "quests-md watch md.xyz@::2 --index ref.qindex --select false_alarm=0.1 --halt inf -o uq",
    ),
    "report": (
        "quests-md report uq -o run.html",
        "quests-md report test.xyz --index ref.qindex --group-key kind -o dataset.html",
    ),
    "export model-devi": (
        "quests-md export model-devi uq",
        "quests-md export model-devi again -o again.out",
    ),
    "dh": (
        "quests-md dh md.xyz --index ref.qindex --threshold false_alarm=0.1 -o dH.extxyz",
        "quests-md dh test.xyz --reference training.xyz --bandwidth auto -o dH.csv --plot dH.png",
    ),
    "overlap": (
        "quests-md overlap test.xyz --index ref.qindex --threshold false_alarm=0.1",
        "quests-md overlap test.xyz --reference training.xyz --group-key kind -o overlap.csv",
    ),
    "entropy": (
        "quests-md entropy training.xyz --group-key kind --plot groups.png",
        "mpiexec -n 4 quests-md entropy training.xyz --scratch .",
    ),
    "diversity": (
        "quests-md diversity training.xyz",
        "quests-md diversity training.xyz --sample 100 --runs 20 -o diversity.json",
    ),
    "learning-curve": (
        "quests-md learning-curve training.xyz --plot curve.png",
        "quests-md learning-curve training.xyz --fractions 0.1,0.3,1 --runs 5 -o curve.csv",
    ),
    "compress": (
        "quests-md compress training.xyz --size 50% -o few.extxyz",
        "quests-md compress test.xyz --reference training.xyz --size 2 -o chosen.json",
    ),
    "attack": (
        "quests-md attack test.xyz@0 --index ref.qindex --calculator ase.calculators.emt:EMT --temperature 300 "
        "--steps 5 -o climbed.extxyz",
        "quests-md attack test.xyz --index ref.qindex --calculator ase.calculators.emt:EMT --temperature 900 "
        "--focus worst --steps 5 --repeats 2 -o worst_first.extxyz",
    ),
    "cutout": (
        "quests-md cutout md.xyz --index ref.qindex --threshold false_alarm=0.1 --radius 2.5 -o cutouts.extxyz",
        "quests-md cutout uq/candidates.extxyz --index ref.qindex --threshold 20 --radius 0 -o worst.extxyz",
    ),
    "queue add": (
        "quests-md queue add queue.db uq/candidates.extxyz",
        "quests-md queue add queue.db cutouts.extxyz test.xyz@0",
    ),
    "queue list": ("quests-md queue list queue.db", "quests-md queue list queue.db --state waiting --json"),
    "queue show": ("quests-md queue show queue.db 1", "quests-md queue show queue.db 2"),
    "label": (
        "quests-md label queue.db --calculator oracle.toml --test",
        "quests-md label queue.db --calculator oracle.toml --workers 2",
    ),
    "queue retry": ("quests-md queue retry queue.db 1", "quests-md queue retry queue.db --all"),
    "queue export": (
        "quests-md queue export queue.db -o done.extxyz",
        "quests-md queue export queue.db -o wanted.extxyz --state waiting --with-id",
    ),
    "queue import": (
        "quests-md queue import queue.db labels.extxyz",
        'quests-md queue import queue.db labels.extxyz --code "VASP 6.4" --max-force 20',
    ),
    "learn": ("quests-md learn learn.toml --check", "quests-md learn learn.toml"),
    "nuclei": (
        "quests-md nuclei md.xyz --index ref.qindex --threshold false_alarm=0.1 --link 3.2 -o nuclei.csv",
        "quests-md nuclei md.xyz --index ref.qindex --threshold 20 --above --link 3.2 -o defects.extxyz",
    ),
    "thermo windows": (
        "quests-md thermo windows md.xyz --width 2 -o windows.csv",
        "quests-md thermo windows md.xyz --width 2 --step 1 --plot windows.png",
    ),
    "thermo states": (
        "quests-md thermo states 300=training.xyz 600=test.xyz 900=md.xyz --size 50 -o states.csv",
        "quests-md thermo states cold=training.xyz hot=md.xyz --size 50 --runs 4 --plot states.png",
    ),
    "thermo difference": (
        "quests-md thermo difference training.xyz md.xyz",
        "quests-md thermo difference training.xyz md.xyz --runs 4 -o difference.json",
    ),
    "thermo boundary": (
        "quests-md thermo boundary solid.csv liquid.csv",
        "quests-md thermo boundary solid.csv liquid.csv --offset 0.1 -o boundary.json --plot boundary.png",
    ),
    "thermo integrate": (
        "quests-md thermo integrate enthalpies.csv -o entropy.csv",
        "quests-md thermo integrate enthalpies.csv --degree 2 --plot entropy.png",
    ),
    "thermo compare": (
        "quests-md thermo compare states.csv enthalpies.csv",
        "quests-md thermo compare states.csv enthalpies.csv --configurational --plot line.png",
    ),
    "thermo couple": (
        "quests-md thermo couple slopes.csv --temperature 500 --energy -3.4 --reference -3.6",
        "quests-md thermo couple slopes.csv --temperature 500 --energy -3.4 --reference -3.6 --plot slopes.png",
    ),
    "doctor": ("quests-md doctor", "quests-md doctor --json"),
    "warm-up": ("quests-md warm-up", "NUMBA_CACHE_DIR=$HOME/.cache/quests_md quests-md warm-up"),
}


def add_examples(command: click.Command, verb: str) -> click.Command:
    """Return a copy of a command whose help, and that of its subcommands, ends with examples."""
    command = copy.copy(command)  # two verbs may share one command
    if isinstance(command, click.Group):
        command.commands = {name: add_examples(one, f"{verb} {name}") for name, one in command.commands.items()}
        texts = [EXAMPLES[f"{verb} {name}"][0] for name in list(command.commands)[:2]]
    else:
        texts = list(EXAMPLES[verb])
    command.epilog = "\n".join(["\b", "Examples:", *(f"  {text}" for text in texts)])
    return command
