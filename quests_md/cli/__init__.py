"""The command line ``quests-md``. The file of a verb is loaded when the verb is called."""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from ..errors import QuestsError
from .examples import BEGIN, add_examples

__all__ = ["EXIT_CODES", "main"]

# The exit codes of a watched run; click itself ends with 2 if options are wrong.
EXIT_CODES = {"finished": 0, "failed": 1, "halted": 3}
_INTERRUPTED = 130  # by Ctrl-C: what shells give a program that SIGINT has ended

# What one may want to do, and the verbs for it: (module, command in it, what `quests-md --help` says).
_TASKS = {
    "Prepare a run": {
        "index": ("index_verbs", "index_group", "Build, show and verify the index of a reference."),
        "bandwidth": ("dataset_verbs", "bandwidth_command", "Bandwidths for a dataset, by rule and by likelihood."),
        "config": ("live_verbs", "config_group", "Write and check a quests.toml."),
    },
    "Watch a run": {
        "run": ("live_verbs", "run_command", "Run a LAMMPS input script, watched."),
        "watch": ("live_verbs", "watch_command", "Replay a trajectory through the monitor."),
        "report": ("dataset_verbs", "report_command", "Write one page about a run, a dataset or an index."),
    },
    "Know your data": {
        "dh": ("environment_verbs", "dh_command", "dH of the environments of frames against a reference."),
        "overlap": ("dataset_verbs", "overlap_command", "What share of a dataset another one covers."),
        "entropy": ("dataset_verbs", "entropy_command", "Entropy, diversity and efficiency of a dataset."),
        "diversity": ("dataset_verbs", "entropy_command", "The same as entropy."),
        "learning-curve": ("dataset_verbs", "learning_curve_command", "Entropy of a growing share of a dataset."),
        "compress": ("frame_verbs", "compress_command", "Choose few frames that keep the information of a dataset."),
    },
    "Improve a potential": {
        "attack": ("attack_verb", "attack_command", "Climb to frames near given ones that a reference knows less."),
        "cutout": ("frame_verbs", "cutout_command", "Cut small cells around the worst atoms, for an oracle."),
        "queue": ("queue_verbs", "queue_group", "Frames that wait for labels, and those that have them."),
        "label": ("loop_verbs", "label_command", "Label the frames of a queue with an oracle."),
        "learn": ("loop_verbs", "learn_command", "Run the active-learning loop: explore, label, train, again."),
        "export": ("export_verbs", "export_group", "Write what a run has found out for other programs."),
    },
    "Phases and nuclei": {
        "nuclei": ("environment_verbs", "nuclei_command", "Find nuclei along a trajectory: linked atoms, low dH."),
        "thermo": ("thermo_verbs", "thermo_group", "Entropies of states, phase boundaries, thermodynamics."),
    },
    "This installation": {
        "doctor": (
            "installation_verbs",
            "doctor_command",
            "Say what is installed, and whether it works.",
        ),
        "warm-up": ("installation_verbs", "warm_up_command", "Compile all kernels now, so that no job waits for it."),
    },
}
_VERBS = {verb: entry for verbs in _TASKS.values() for verb, entry in verbs.items()}


class _Verbs(click.Group):
    """A group that imports a verb when it is called, and prints an error in one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _join_elements(args))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, name, _ = _VERBS[cmd_name]
        command: click.Command = getattr(import_module(f".{module}", __name__), name)
        return add_examples(command, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's own would import every verb for its help.
        for task, verbs in _TASKS.items():
            with formatter.section(task):
                formatter.write_dl([(f"{verb:<14}", text) for verb, (_, _, text) in verbs.items()])
        with formatter.section("Where to begin"):
            formatter.write_dl(BEGIN, col_max=50)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own would import every verb, at each press of the key.
        found = [CompletionItem(v, help=text) for v, (_, _, text) in _VERBS.items() if v.startswith(incomplete)]
        return found or super().shell_complete(ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            from ..hosts.mpi import launched_rank

            if launched_rank() > 0:  # rank 0 tells it
                raise click.exceptions.Exit(error.exit_code) from error
            raise
        except KeyboardInterrupt as error:
            _end_interrupted(error)
        except SystemError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):  # it came while compiled code ran
                _end_interrupted(error.__cause__)
            raise
        except QuestsError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:  # `| head`: click ends quietly
                raise
            _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _join_elements(arguments: list[str]) -> list[str]:
    """Return the arguments with ``--elements Si C`` as ``--elements=Si,C``: click takes one value."""
    if not any(argument.partition("=")[0] == "--elements" for argument in arguments):
        return arguments
    from ..elements import SYMBOLS

    joined, inside = list[str](), False
    for argument in arguments:
        if inside and set(argument.split(",")) <= set(SYMBOLS):
            joined[-1] += ("," if "=" in joined[-1] else "=") + argument
        else:
            joined.append(argument)
            inside = argument.partition("=")[0] == "--elements"
    return joined


def _end_interrupted(error: KeyboardInterrupt) -> NoReturn:
    from ..hosts.mpi import launched_rank

    sys.last_value = error  # it ends the program: a rank does not leave the others waiting
    if launched_rank() == 0:
        click.echo("quests-md: interrupted", err=True)
    raise click.exceptions.Exit(_INTERRUPTED) from error


def _fail(message: str) -> NoReturn:
    click.echo("quests-md: error: " + " ".join(message.split()), err=True)
    raise click.exceptions.Exit(1)


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="quests_md", prog_name="quests-md")
def main() -> None:
    """Watch a simulation: how far is each atom's environment from the training data?

    `quests-md VERB --help` says more of a verb, with examples.
    """
