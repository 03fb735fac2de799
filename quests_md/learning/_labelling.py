"""The stage of a generation that labels what was selected."""

from __future__ import annotations

import time

from ..errors import OracleError
from ..oracle import Entry, Labelling, label
from ._stages import Work, labels_before
from ._state import read_json, write_json
from ._workers import is_dead

__all__ = ["labelled"]

_WAIT = 1.0  # seconds between looks at frames that other workers label


def labelled(work: Work, generation: int, ids: list[int]) -> None:
    """Label what was selected. A frame whose labelling fails costs that frame.

    What failed in a generation before and has its labels by now, as somebody let it wait again, counts as one of this.

    Raises
    ------
    OracleError
        More than the share [stop] failed of them have no labels.
    """
    path = work.folder.labelled(generation)
    if path.exists():
        return
    started = work.begin(generation, "label", len(ids))
    entries = _label_all(work, ids)
    lost = [entry for entry in entries if entry.state != "done"]
    if len(lost) > work.config.stop.failed * len(ids):
        reasons = "; ".join(f"frame {entry.id}: {entry.reason}" for entry in lost[:3])
        raise OracleError(
            f"{len(lost)} of {len(ids)} frames of generation {generation} have no labels, more than failed = "
            f"{work.config.stop.failed:g} allows: {reasons}. See: quests-md queue list {work.folder.queue}; "
            f"when the oracle is right again: quests-md queue retry {work.folder.queue}, and start the loop again"
        )
    states = {
        state: [entry.id for entry in entries if entry.state == state] for state in ("done", "failed", "quarantined")
    }
    states["done"] = sorted({*states["done"], *_late(work, generation)})
    write_json(path, states)
    work.end(generation, "label", started)


def _late(work: Work, generation: int) -> list[int]:
    """Return the ids of frames of generations before that have got their labels since."""
    before = [read_json(work.folder.labelled(g)) for g in range(generation)]
    lost = {number for states in before for state in ("failed", "quarantined") for number in states[state]}
    known = set(labels_before(work, generation))
    return [entry.id for entry in work.queue.entries(["done"]) if entry.id in lost - known]


def _label_all(work: Work, ids: list[int]) -> list[Entry]:
    """Label until none of these frames waits; what other workers calculate is waited for."""
    table, told = work.config.oracle, [(0, "")]

    def report(counts: Labelling) -> None:
        event = counts.ended, counts.last  # the same may happen to a frame twice
        text, told[0] = (counts.last if event != told[0] else ""), event
        work.report.step(counts.done + counts.failed + counts.quarantined, text)

    # With the lock of the folder, claims of a loop that was killed are known to be nobody's.
    work.queue.release_dead(is_dead)
    while True:
        label(work.queue, table.oracle(), work.executor(), workers=table.workers, report=report)
        entries = [work.queue.entry(number) for number in ids]
        if all(entry.state not in ("waiting", "running") for entry in entries):
            return entries
        time.sleep(_WAIT)  # no database tells when another program has changed it
