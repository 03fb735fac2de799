"""quests-md learn: the active-learning loop."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import MissingExtraError
from ..files import write_atomically

__all__ = ["learn_command"]

_CONVERGED, _NOT_CONVERGED = 0, 3


@click.command("learn")
@click.argument("file", default="learn.toml", type=click.Path(dir_okay=False))
@click.option("--check", is_flag=True, help="Check the file, and stop.")
def learn_command(file: str, check: bool) -> None:
    """Run the loop that FILE (learn.toml by default) describes, or go on with it.

    Explore, select, label, train, extend the index, and again. Killed at any moment and started again, it goes on where
    it was. Rows of learning.csv are printed as they come; learning.png shows them (pip install 'quests_md[plot]').

    Exit code: 0 converged, 1 failed, 3 ended without: covered, but above the limit of the force error, or at a limit of
    generations or labels.
    """
    from ..learning import LearnConfig, learn
    from ._learning import terminal

    config = LearnConfig.read(file)
    if check:
        click.echo(f"{file}: right")
        return
    output = Path(config.output)
    with terminal(config.stop.generations, lambda row: _draw(output)) as report:
        result = learn(config, report)
    click.echo(f"{result.status}: {result.reason}")
    click.echo(f"  potential          {result.potential}")
    click.echo(f"  index              {result.index}")
    click.echo(f"  labels             {result.labels} in {result.generation + 1} generations")
    click.echo(f"files in {output}" + ("" if _draw(output) else "; no learning.png: pip install 'quests_md[plot]'"))
    raise click.exceptions.Exit(_CONVERGED if result.status == "converged" else _NOT_CONVERGED)


def _draw(output: Path) -> bool:
    """Draw learning.png; return whether it could be."""
    from ..report import generations

    try:
        figure = generations(output)
    except MissingExtraError:
        return False
    write_atomically(output / "learning.png", lambda png: figure.savefig(png, format="png", dpi=150))
    return True
