"""What a newcomer meets: the list of verbs, the examples of each, completion, progress, colours."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ase.io
import click
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner
from paths import DOCS

from quests_md import cli
from quests_md.cli import progress
from quests_md.cli.examples import BEGIN, EXAMPLES
from quests_md.index import Index

# Examples that are read, and not run here, and where they are run.
_NOT_RUN = {
    "run": "tests/hosts/test_lammps_script.py",
    "learn": "tests/cli/test_cli_learn.py",
    "doctor": "tests/cli/test_cli_installation.py",
    "warm-up": "tests/cli/test_cli_installation.py",
    "thermo boundary": "tests/cli/test_cli_thermo.py",  # tables of two phases
    "thermo integrate": "tests/cli/test_cli_thermo.py",
    "thermo compare": "tests/cli/test_cli_thermo.py",
    "thermo couple": "tests/cli/test_cli_thermo.py",
    "index residuals": "tests/cli/test_cli_residuals.py",
    "queue retry": "tests/cli/test_cli_queue.py",  # nothing has failed
    "queue import": "tests/cli/test_cli_queue.py",
}


def commands(group: click.Group, before: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command, with all words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def words_of(example: str) -> list[str]:
    """Return the arguments of an example for quests-md."""
    words = shlex.split(example)
    return words[words.index("quests-md") + 1 :]


def test_every_verb_has_two_examples() -> None:
    assert sorted(EXAMPLES) == sorted(verb for verb, _ in commands(cli.main))
    assert all(len(set(pair)) == 2 for pair in EXAMPLES.values())


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_help_of_a_verb_ends_with_its_examples(verb: str) -> None:
    shown = CliRunner().invoke(cli.main, [*verb.split(), "--help"]).stdout
    examples = shown[shown.index("Examples:") :].splitlines()
    assert [line.strip() for line in examples[1:]] == list(EXAMPLES[verb])


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_examples_have_options_that_exist(verb: str) -> None:
    command = dict(commands(cli.main))[verb]
    for example in EXAMPLES[verb]:
        words = words_of(example)
        assert words[: len(verb.split())] == verb.split()
        with command.make_context(verb, words[len(verb.split()) :], parent=click.Context(cli.main)) as context:
            assert context.command is command


def test_the_way_to_begin_is_made_of_verbs() -> None:
    known = {verb for verb, _ in commands(cli.main)}
    shown = CliRunner().invoke(cli.main, []).output
    for example, text in BEGIN:
        assert {" ".join(words_of(example)[:n]) for n in (1, 2)} & known
        assert f"{example}  " in shown
        assert text in shown


# -- the examples run --------------------------------------------------------------------------------------------------


def copper(seed: int, scale: float, kind: str = "bulk") -> ase.Atoms:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    atoms.info.update(kind=kind, step=10 * seed)
    return atoms


def labelled(seed: int, scale: float) -> ase.Atoms:
    atoms = copper(seed, scale)
    atoms.calc = EMT()
    forces = atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=forces)
    atoms.arrays["model_forces"] = forces * 1.1
    return atoms


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder in which the examples find what they name."""
    monkeypatch.chdir(tmp_path)
    cold = [labelled(seed, 0.06) for seed in range(40)]
    ase.io.write("training.xyz", cold)
    ase.io.write("aimd.xyz", [copper(seed, 0.05, "aimd") for seed in range(4)])
    alloy = [copper(seed, 0.05, "alloy") for seed in range(6)]
    for seed, atoms in enumerate(alloy):
        atoms.numbers[np.random.default_rng(seed).permutation(32)[:8]] = 79
    ase.io.write("alloy.xyz", alloy)
    ase.io.write("more.xyz", alloy[:2])
    ase.io.write("test.xyz", [copper(seed, 0.07, "test") for seed in range(100, 105)])
    ase.io.write("labelled.xyz", [labelled(seed, 0.08) for seed in range(200, 230)])
    ase.io.write("md.xyz", [copper(seed, 0.05 + 0.02 * seed, "md") for seed in range(8)])
    Path("oracle.toml").write_text('calculator = "ase.calculators.emt:EMT"\n')


def test_the_examples_run_in_their_order(files: None) -> None:
    for verb, pair in EXAMPLES.items():
        if verb in _NOT_RUN:
            continue
        for example in pair:
            done = CliRunner().invoke(cli.main, words_of(example))
            assert done.exit_code in (0, 3), f"{example}\n{done.output}{done.stderr}"
        if verb == "config init":  # as a user would: the settings of this run
            for name in ("quests.toml", "melt.toml"):
                text = Path(name).read_text()
                text = text.replace("reference.qindex", "ref.qindex").replace("0.01", "0.1")
                Path(name).write_text(text)
        if verb == "index calibrate":
            assert Index.open("ref.qindex").calibration is not None


# -- completion, colours, progress -------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="completion of bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("quests-md le", ["learning-curve", "learn"]),
        ("quests-md index re", ["residuals"]),
        ("quests-md dh --ind", ["--index"]),
    ],
)
def test_a_shell_completes(typed: str, offered: list[str]) -> None:
    program = Path(sys.executable).with_name("quests-md")
    asked = {"_QUESTS_MD_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run([program], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert [line.partition(",")[2] for line in done.stdout.splitlines()] == offered


def test_completion_of_verbs_loads_nothing_heavy() -> None:
    code = (
        "import sys, click; from quests_md.cli import main; main.shell_complete(click.Context(main), ''); "
        "heavy = {'numba', 'numpy', 'ase', 'pydantic', 'rich'}; assert not heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_pipe_gets_a_line_for_each_stage(files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    quiet = CliRunner().invoke(cli.main, ["index", "build", "training.xyz", "-o", "ref.qindex"])
    assert "calibrating" not in quiet.stderr  # as conftest.py sets it
    monkeypatch.delenv("QUESTS_MD_PROGRESS")
    done = CliRunner().invoke(cli.main, ["index", "build", "training.xyz", "-o", "ref.qindex"])
    said = [line for line in done.stderr.splitlines() if not line.startswith("quests_md: compiling")]
    stages = ["quests-md: reading training.xyz:", "quests-md: computing descriptors:", "quests-md: calibrating:"]
    assert [line for line in said if line in stages] == stages
    assert len(said) == len(stages)


def test_other_ranks_say_nothing(files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    monkeypatch.delenv("QUESTS_MD_PROGRESS")
    monkeypatch.setattr(progress, "launched_rank", lambda: 1)
    assert "calibrating" not in CliRunner().invoke(cli.main, ["index", "build", "aimd.xyz", "-o", "r.qindex"]).stderr


def test_a_share_tells_how_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by what came after the first share: before that, kernels may have been compiled."""
    now, shown = iter([60.0, 70.0, 360.0, 40_060.0]), list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(progress, "QUIET", 2.0)
    counter = progress.Counter(lambda text, done: shown.append(f"{text} {done}"))
    counter.begin("work:")
    for share in (0.1, 0.5, 0.25, 0.5):
        counter.share(share)
    left = ["", ", 12 s left", ", 25 min left", ", 13 h 53 min left"]
    assert shown == [
        "work: ",
        *(f"work: {share}{text}" for share, text in zip(("10 %", "50 %", "25 %", "50 %"), left, strict=True)),
    ]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_is_heeded_on_a_terminal(files: None, no_color: str) -> None:
    """The line of progress moves the cursor; with NO_COLOR it sets no colour."""
    code = (
        "import sys; from quests_md.cli.progress import show_progress\n"
        "with show_progress() as progress:\n    progress.begin('work:'); progress.share(0.5)\n"
    )
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color, "QUESTS_MD_PROGRESS": "on"}
    main, other = pty.openpty()
    subprocess.run([sys.executable, "-c", code], env=environment, stderr=other, check=True)
    os.close(other)
    said = bytearray()
    try:
        while part := os.read(main, 4096):
            said += part
    except OSError:  # the end of a terminal that nobody holds any more
        pass
    os.close(main)
    assert b"work: 50 %" in said
    colours = re.findall(rb"\x1b\[(?:3[0-7]|38;|9[0-7])[\d;]*m", bytes(said))
    assert bool(colours) is not bool(no_color)


# -- the manual --------------------------------------------------------------------------------------------------------


def test_the_manual_has_every_verb_and_every_exit_code() -> None:
    page = (DOCS / "command_line.md").read_text(encoding="utf-8")
    assert [verb for verb in cli._VERBS if f"`{verb}`" not in page] == []
    codes = [*cli.EXIT_CODES.values(), 2, cli._INTERRUPTED]
    assert [code for code in codes if f"| {code} |" not in page] == []
