"""quests-md queue: add, list, show, retry, export."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, OutputError, SourceError
from ..files import write_atomically
from ..files.extxyz import format_atoms
from ..oracle import STATES, Entry, Queue, digest
from ..sources import read_atoms

__all__ = ["queue_group"]

_STATES = click.Choice(STATES)
_WIDTH = 60  # of a reason in a list


@click.group("queue")
def queue_group() -> None:
    """Frames that wait for labels, and those that have them.

    QUEUE is a file that ends in .db, or postgresql://user:password@host/database.
    """


@queue_group.command("add")
@click.argument("queue")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
def add(queue: str, sources: tuple[str, ...]) -> None:
    """Add the frames of files; those that are in QUEUE already are passed over.

    FILE is anything that ASE reads, with an optional slice: uq/candidates.extxyz, md.traj@-1. QUEUE is made if there is
    none.
    """
    found = Queue(queue)
    new, old = set[int](), set[int]()
    for source in sources:
        for id, is_new in _add(found, source):
            (new if is_new else old).add(id)
    old -= new
    click.echo(f"{found.name}: {len(new)} frames added" + (f", {len(old)} were there" if old else ""))


def _add(queue: Queue, source: str) -> Iterator[tuple[int, bool]]:
    """Add the frames of a file, which a run may be writing to: its last frame may be half there when it is read."""
    while True:
        size = _size(source)
        try:
            for count, atoms in enumerate(read_atoms(source)):
                try:
                    added = queue.add(atoms, file=source, frame=count)
                except InputError as error:
                    raise InputError(f"{source}: frame {count}: {error}; those before it are added") from error
                yield added
            return
        except SourceError:
            if _size(source) == size:
                raise


def _size(source: str) -> int:
    path = Path(source)
    return path.stat().st_size if path.is_file() else 0


@queue_group.command("list")
@click.argument("queue")
@click.option("--state", "states", multiple=True, type=_STATES, help="Only frames in this state; may be repeated.")
def list_command(queue: str, states: tuple[str, ...]) -> None:
    """List frames, a line for each, and count those in each state."""
    found = Queue(queue, create=False)
    entries = found.entries(states or None)
    if entries:
        click.echo(_table(entries))
    click.echo(f"{found.name}: " + ", ".join(f"{n} {state}" for state, n in found.counts().items()))


@queue_group.command("show")
@click.argument("queue")
@click.argument("id", type=int)
def show(queue: str, id: int) -> None:
    """Show all that is known of one frame."""
    entry = Queue(queue, create=False).entry(id)
    lines = {
        "state": entry.state,
        "tries": entry.tries,
        "worker": entry.worker,
        "atoms": f"{entry.natoms}, {entry.formula}",
        "digest": entry.digest,
        "added": _date(entry.added),
        "changed": _date(entry.changed),
        **{f"source: {key}": value for key, value in entry.source.items()},
        **{f"oracle: {key}": value for key, value in entry.record.items()},
    }
    click.echo(f"frame {entry.id}")
    for name, value in lines.items():
        click.echo(f"  {name:<18} {value}")
    for event in entry.history:
        click.echo(
            f"  {_date(event['at'])}  {event['what']}, {event['worker'] or 'nobody'}: {event['reason']}".rstrip(": ")
        )


@queue_group.command("retry")
@click.argument("queue")
@click.argument("ids", metavar="[ID]...", nargs=-1, type=int)
@click.option("--all", "everything", is_flag=True, help="All that are failed or quarantined.")
def retry(queue: str, ids: tuple[int, ...], everything: bool) -> None:
    """Let failed and quarantined frames wait again, with all their tries."""
    if bool(ids) == everything:
        raise click.UsageError("give the ids of frames, or --all")
    found = Queue(queue, create=False)
    states = {id: found.entry(id).state for id in ids}
    click.echo(f"{found.name}: {found.retry(None if everything else ids)} frames wait again")
    for id, state in states.items():
        if state not in ("failed", "quarantined"):
            click.echo(f"  frame {id} is left alone: it is {state}")


@queue_group.command("export")
@click.argument("queue")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The extended XYZ file to write.")
@click.option(
    "--state", "states", multiple=True, type=_STATES, help="Of which frames; may be repeated.  [default: done]"
)
@click.option("--append", is_flag=True, help="Add to that file what is not in it yet.")
@click.option("--overwrite", is_flag=True, help="Replace that file if it exists.")
def export(queue: str, output: Path, states: tuple[str, ...], append: bool, overwrite: bool) -> None:
    """Write frames to a file, with energy, forces and stress where they are done.

    Floats have 17 significant digits. The file is there as it was or as a whole, whatever ends this program.
    """
    if append and overwrite:
        raise click.UsageError("give --append or --overwrite")
    if output.exists() and not (append or overwrite):
        raise OutputError(f"{output} exists: choose another name, or give --append or --overwrite")
    if output.suffix not in (".xyz", ".extxyz"):
        raise OutputError(f"{output}: extended XYZ is written: choose a name that ends in .extxyz or .xyz")
    found = Queue(queue, create=False)
    ids = [entry.id for entry in found.entries(states or ("done",))]
    old = output.read_bytes() if append and output.exists() else b""
    there = {digest(atoms) for atoms in read_atoms(output)} if old else set[str]()
    texts = list(_texts(found, ids, there))
    end = b"\n" if old and not old.endswith(b"\n") else b""
    write_atomically(output, lambda file: file.writelines([old, end, *texts]))
    click.echo(f"{len(texts)} frames written to {output}" + (f", {len(ids) - len(texts)} were there" if there else ""))


def _texts(queue: Queue, ids: Sequence[int], there: set[str]) -> Iterator[bytes]:
    for id in ids:
        atoms = queue.atoms(id)
        if digest(atoms) not in there:
            yield format_atoms(atoms)


def _table(entries: Sequence[Entry]) -> str:
    """Return a line for each frame; columns that are empty everywhere are left out."""
    names = ("id", "state", "tries", "worker", "formula", "run", "step", "dH_max", "seconds", "reason")
    rows = [[_cell(getattr(entry, name, entry.source.get(name))) for name in names] for entry in entries]
    used = [c for c in range(len(names)) if any(row[c] for row in rows)]
    table = [[row[c] for c in used] for row in [list(names), *rows]]
    widths = [max(len(row[c]) for row in table) for c in range(len(used))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
