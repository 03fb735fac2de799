"""quests-md run: a LAMMPS input script, watched."""

from __future__ import annotations

import click

from . import EXIT_CODES

__all__ = ["run_command"]


@click.command(
    # No -h, which click would find in LAMMPS's -echo.
    context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]},
    epilog="Several ranks: mpiexec -n 4 quests-md run in.lammps --config quests.toml",
)
@click.argument("script", type=click.Path(dir_okay=False))
@click.option("--config", "config_path", required=True, type=click.Path(dir_okay=False), help="The quests.toml.")
@click.argument("lammps_arguments", nargs=-1, type=click.UNPROCESSED)
def run_command(script: str, config_path: str, lammps_arguments: tuple[str, ...]) -> None:
    """Run a LAMMPS input SCRIPT with the lammps package of this Python, watched.

    What follows the script goes to LAMMPS: -var T 300 -log none. Watching begins at a comment `# quests-md: attach`
    in the script, else before its first run or minimize.

    Exit code: 0 finished, 1 failed, 3 halted: above a threshold, by a broken frame, SIGTERM or wall_time.
    """
    from ..config import RunConfig
    from ..hosts.lammps_script import run_script

    watch = run_script(script, RunConfig.read(config_path), lammps_arguments)
    raise click.exceptions.Exit(EXIT_CODES[watch.session.status])
