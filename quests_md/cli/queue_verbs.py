"""quests-md queue: frames that wait for labels, and those that have them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import InputError, OutputError, SourceError
from ..files import write_atomically
from ..labelling import STATES, Entry, Queue, digest, import_labels
from ..sources import read_all, read_atoms, read_labelled
from .datasets import reading_options
from .results import add_options, format_facts, format_table, to_plain

__all__ = ["queue_group"]

_STATES = click.Choice(STATES)
_WIDTH = 60  # characters of a reason in a list


@click.group("queue")
def queue_group() -> None:
    """Frames that wait for labels, and those that have them.

    QUEUE is a file that ends in .db, or postgresql://user:password@host/database.
    """


@queue_group.command("add")
@click.argument("queue")
@click.argument("sources", metavar="FILE...", nargs=-1, required=True)
@reading_options()
def add(queue: str, sources: tuple[str, ...], reading: dict[str, Any]) -> None:
    """Add the frames of files. Frames that are already in QUEUE are left out.

    FILE is anything that ASE reads, with an optional slice: uq/candidates.extxyz, md.traj@-1. QUEUE is made if there is
    none.
    """
    found = Queue(queue)
    new, old = set[int](), set[int]()
    for source in sources:
        for id, is_new in _add(found, source, reading):
            (new if is_new else old).add(id)
    old -= new
    click.echo(f"{found.name}: {len(new)} frames added" + (f", {len(old)} were there" if old else ""))


def _add(queue: Queue, source: str, reading: dict[str, Any]) -> Iterator[tuple[int, bool]]:
    """Add the frames of a file. If a run is writing to it, the last frame may be incomplete: then read it again."""
    while True:
        size = _get_size(source)
        try:
            for count, one in enumerate(read_all(source, **reading)):
                try:
                    added = queue.add(one.atoms, one.text.text, file=source, frame=count)
                except InputError as error:
                    raise InputError(f"{source}: frame {count}: {error}; those before it are added") from error
                yield added
            return
        except SourceError:
            if _get_size(source) == size:
                raise


def _get_size(source: str) -> int:
    path = Path(source)
    return path.stat().st_size if path.is_file() else 0


@queue_group.command("list")
@click.argument("queue")
@click.option("--state", "states", multiple=True, type=_STATES, help="Only frames in this state; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(queue: str, states: tuple[str, ...], as_json: bool) -> None:
    """List frames, a line for each, and count those in each state."""
    found = Queue(queue, create=False)
    entries = found.entries(states or None)
    if as_json:
        told = {"queue": found.name, "counts": found.counts(), "frames": [_describe(entry) for entry in entries]}
        click.echo(json.dumps(to_plain(told), indent=2))
        return
    if entries:
        click.echo(_tabulate(entries))
    click.echo(f"{found.name}: " + ", ".join(f"{n} {state}" for state, n in found.counts().items()))


def _describe(entry: Entry) -> dict[str, Any]:
    """Return what is known of a frame, without its labels."""
    keys = ("id", "state", "tries", "worker", "natoms", "formula", "digest", "added", "changed", "source", "record")
    return {key: getattr(entry, key) for key in keys}


@queue_group.command("show")
@click.argument("queue")
@click.argument("id", type=int)
def show(queue: str, id: int) -> None:
    """Show everything about one frame."""
    entry = Queue(queue, create=False).entry(id)
    lines = {
        "state": entry.state,
        "tries": entry.tries,
        "worker": entry.worker,
        "atoms": f"{entry.natoms}, {entry.formula}",
        "digest": entry.digest,
        "added": _format_date(entry.added),
        "changed": _format_date(entry.changed),
        **{f"source: {key}": value for key, value in entry.source.items()},
        **{f"oracle: {key}": value for key, value in entry.record.items()},
    }
    click.echo(f"frame {entry.id}\n{format_facts(lines)}")
    for event in entry.history:
        click.echo(
            f"  {_format_date(event['at'])}  {event['what']}, {event['worker'] or 'nobody'}: {event['reason']}".rstrip(
                ": "
            )
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
@click.option("--with-id", is_flag=True, help="Write each frame's `queue_id`, by which `queue import` finds it.")
@add_options(
    *(
        click.option(f"--{name}-key", metavar="KEY", help=f"What the label is called in the file.  [default: {name}]")
        for name in ("energy", "forces", "stress")
    ),
    click.option("--virial-key", metavar="KEY", help="Write the virial, too: −stress times volume, in eV."),
)
def export(
    queue: str, output: Path, states: tuple[str, ...], append: bool, overwrite: bool, with_id: bool, **keys: str | None
) -> None:
    """Write frames to a file, with energy, forces and stress if they are done.

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
    names = {key.removesuffix("_key"): name for key, name in keys.items() if name is not None}
    texts = list(_format_new(found, ids, there, with_id, names))
    end = b"\n" if old and not old.endswith(b"\n") else b""
    write_atomically(output, lambda file: file.writelines([old, end, *texts]))
    click.echo(f"{len(texts)} frames written to {output}" + (f", {len(ids) - len(texts)} were there" if there else ""))


@queue_group.command("import")
@click.argument("queue")
@click.argument("source", metavar="FILE")
@click.option("--max-force", default=50.0, show_default=True, help="In eV/Å; larger is not believed.")
@click.option("--code", default="", help="What computed them, for the record.")
@reading_options("energy", "forces", "stress")
def import_command(queue: str, source: str, max_force: float, code: str, reading: dict[str, Any]) -> None:
    """Take labels for frames of QUEUE that were made elsewhere.

    FILE has the frames with energy and forces. A frame is that of the queue which its `queue_id` names, as `queue
    export --with-id` writes it, if its atoms are there, too; without that key, the one with the same atoms to the last
    digit. Labels are checked like those of `label`.

    Exit code: 1 if a frame is not in the queue, or its labels cannot be believed.
    """
    found = Queue(queue, create=False)
    imported = import_labels(found, read_labelled(source, **reading), max_force=max_force, code=code, source=source)
    for reason in imported.refused:
        click.echo(f"quests-md: {source}: {reason}", err=True)
    click.echo(
        f"{found.name}: {len(imported.done)} frames got labels, {len(imported.there)} had some, "
        f"{len(imported.refused)} refused"
    )
    raise click.exceptions.Exit(1 if imported.refused else 0)


def _format_new(
    queue: Queue, ids: Sequence[int], there: set[str], with_id: bool, names: Mapping[str, str]
) -> Iterator[bytes]:
    for id in ids:
        atoms = queue.atoms(id)
        if digest(atoms) not in there:
            yield queue.format(id, with_id, names)


def _tabulate(entries: Sequence[Entry]) -> str:
    """Return a line for each frame, without columns that are empty everywhere."""
    names = ("id", "state", "tries", "worker", "formula", "run", "step", "dH_max", "seconds")
    rows = [
        {**{name: getattr(entry, name, entry.source.get(name)) for name in names}, "reason": _shorten(entry.reason)}
        for entry in entries
    ]
    used = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    return format_table([{name: row[name] for name in used} for row in rows])


def _shorten(reason: str) -> str:
    """Return a reason in one line; the end of a long one is cut off."""
    text = " ".join(reason.split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def _format_date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
