"""The page of a watched run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import CalibrationError, FrameError, IndexFileError, InputError, OutputError
from ..frame import Frame
from ..index import Calibration, Index
from ..recording import Run
from ..recording.reader import Rows, read_run
from ..sources import to_frame
from ._drawings import histogram, survival, timeline_drawing
from ._page import Card, Cell, Drawing, Page, Scene, Section, Table, cell, files_table, render, require_extra, scene_of
from ._timeline import list_thresholds

__all__ = ["Saved", "read_saved", "run_page"]


@dataclass
class Saved:
    """What the saved frames of a run hold.

    Attributes
    ----------
    cutoff, k
        Of the descriptor.
    scenes
        The worst environments, worst first.
    atoms
        dH of the watched atoms of the worst and of the last frame, by what they are called.
    counts
        Watched atoms of the last frame, by symbol; empty where it is not there.
    implausible
        Step, time and reason of the implausible frames.
    """

    cutoff: float
    k: int
    scenes: list[Scene] = field(default_factory=list)
    atoms: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    implausible: list[tuple[Any, Any, str]] = field(default_factory=list)


@dataclass
class _Found:
    frame: Frame
    dH: NDArray[np.float64]
    worst: int
    info: dict[str, Any]

    @property
    def maximum(self) -> float:
        return float(self.dH[self.worst])


def read_saved(run: Run, most: int, notes: list[str]) -> Saved:
    """Read the candidates, the last and the implausible frames of a run; what is wrong with them goes to `notes`."""
    index = run.about["index"]
    saved = Saved(float(index.get("cutoff") or 5.0), int(index.get("k") or 32))
    worst: dict[tuple[Any, int], _Found] = {}
    for found in _found(run.candidates(), notes):
        _keep(worst, found, most)
    last = next(_found(_last(run), notes), None)
    if last is not None:
        _keep(worst, last, most)
        watched = last.frame.numbers[np.isfinite(last.dH)]
        saved.counts = {SYMBOLS[z]: int(n) for z, n in zip(*np.unique(watched, return_counts=True), strict=True)}
    ordered = sorted(worst.values(), key=lambda found: -found.maximum)
    for found in ordered:
        try:
            saved.scenes.append(_scene(found, saved, index.get("species") == "neighbours"))
        except FrameError as error:
            notes.append(f"A saved frame cannot be drawn: {error}")
    shown = {} if last is None else {last.frame.step: ("last frame", last)}
    if ordered:  # the frame that halts is both
        shown.setdefault(ordered[0].frame.step, ("worst saved frame", ordered[0]))
    for step, (name, found) in shown.items():
        if found.info.get("values", "exact") == "exact":  # bounds are no values to count
            saved.atoms[f"{name}, step {step}"] = found.dH
    for atoms in _noting(run.implausible(), notes):
        saved.implausible.append((atoms.info.get("step"), atoms.info.get("time"), str(atoms.info.get("reason", ""))))
    return saved


def _keep(worst: dict[tuple[Any, int], _Found], found: _Found, most: int) -> None:
    """Add a frame, unless there are `most` worse ones."""
    worst[found.info.get("run"), found.frame.step] = found
    if len(worst) > most:  # of equals the first one stays
        del worst[min(reversed(worst), key=lambda key: worst[key].maximum)]


def _last(run: Run) -> Iterator[Any]:
    atoms = run.last()
    if atoms is not None:
        yield atoms


def _found(frames: Iterator[Any], notes: list[str]) -> Iterator[_Found]:
    for atoms in _noting(frames, notes):
        dH = atoms.arrays.get("dH")
        if dH is None or not np.isfinite(dH).any():
            continue
        dH = np.asarray(dH, dtype=np.float64)
        yield _Found(to_frame(atoms), dH, int(np.nanargmax(np.where(np.isfinite(dH), dH, -np.inf))), atoms.info)


def _noting(frames: Iterator[Any], notes: list[str]) -> Iterator[Any]:
    """Iterate over frames as far as they are not damaged."""
    try:
        yield from frames
    except OutputError as error:
        notes.append(f"{error}. What was read before is shown.")


def _scene(found: _Found, saved: Saved, by_element: bool) -> Scene:
    frame, info = found.frame, found.info
    assert frame.ids is not None
    symbol, which = SYMBOLS[int(frame.numbers[found.worst])], int(frame.ids[found.worst])
    facts = [("dH", f"{found.maximum:.5g} nats")]
    if np.isfinite(frame.time):
        facts.append(("time", f"{frame.time:.6g} ps"))
    if info.get("band"):
        facts.append(("band", str(info["band"])))
    title = f"step {frame.step}, {symbol} {which}"
    return scene_of(frame, found.dH, found.worst, saved.cutoff, saved.k, title, tuple(facts), by_element=by_element)


_MOST_ROWS = 300  # of a table
_RATES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_SETTINGS = (
    "every", "save_every", "min_atoms", "min_fraction", "consecutive", "release", "min_distance", "implausible",
    "values", "precision", "history", "after", "novelty", "budget", "cutout", "ranks", "threads",
)  # fmt: skip
_LEADS = {
    "finished": "The run ended by itself at step {last}.",
    "halted": "The run was stopped. {reason}",
    "failed": "Watching failed, and the run with it. {reason}",
    "running": "The run was going on when this page was made, or its program was killed. Its last step: {last}.",
}


def run_page(folder: str | Path, *, index: Index | None = None, worst: int = 8) -> str:
    """Return a self-contained page (HTML) of a watched run.

    Parameters
    ----------
    folder
        The output folder of the run; it may be going on, or have failed.
    index
        The index that the run was watched against. Default: the file that run.json names, if it is still there and
        the same; else the page says that nothing is compared with its calibration.
    worst
        How many environments are drawn: those of the saved frames with the largest dH, one of each frame.

    Raises
    ------
    InputError
        The folder holds no run, or `index` is not the one it was watched against.
    MissingExtraError
        matplotlib or jinja2 is not installed.
    """
    require_extra()
    folder = Path(folder)
    record = read_run(folder)
    run, rows, events = record.about, record.rows, record.events
    notes = _damage(record.n_damaged)
    calibration = _calibration_of(folder, run, index, notes)
    saved = read_saved(record, worst, notes)
    evaluated = len(rows)
    if not evaluated:
        notes.append("No step was evaluated: there is nothing to draw.")
    sections = [
        Section("dH along the run", drawings=[timeline_drawing(run, rows, events)]) if _drawable(rows) else None,
        _against_calibration(run, rows, calibration, saved),
        _environments(saved),
        _tables(rows, events, saved),
        Section("What was analysed", facts=_facts(folder, run), tables=[files_table(folder)]),
    ]
    return render(
        Page(
            title=folder.resolve().name,
            kind="A watched run",
            status=str(run.get("status", "")),
            lead=_lead(run),
            notes=notes,
            cards=_cards(run, rows) if evaluated else (),
            sections=[section for section in sections if section is not None],
        )
    )


def _damage(n: int) -> list[str]:
    """Return what is said of rows that cannot be read."""
    if not n:
        return []
    return [
        f"{n} rows of monitor.csv cannot be read and are left out."
        if n > 1
        else "1 row of monitor.csv cannot be read and is left out."
    ]


def _drawable(rows: Rows) -> bool:
    return bool(np.isfinite(rows["max"]).any())


def _lead(run: dict[str, Any]) -> str:
    reason = str(run.get("reason") or "")
    reason = reason[:1].upper() + reason[1:] + "." if reason else ""
    last = run.get("last_step")
    text = _LEADS.get(str(run.get("status")), "{reason}").format(last="none" if last is None else last, reason=reason)
    return text.strip()


def _calibration_of(folder: Path, run: dict[str, Any], index: Index | None, notes: list[str]) -> Calibration | None:
    """Return the calibration of the index of the run; a note says why there is none."""
    if index is None:
        index = _find(folder, run, notes)
    elif not _is_that_of(run, index):
        raise InputError(
            f"{index.path} is not the index that {folder} was watched against: it is {index.describe()}, and run.json "
            f"has {run['index']}: give that one, or none"
        )
    if index is None:
        return None
    if index.hash != run["index"].get("hash"):
        notes.append(
            f"{index.path} has been written again since the run, to calibrate it perhaps: its hash has changed."
        )
    if index.calibration is None:
        notes.append("The index has no calibration, so dH is compared with none: quests-md index calibrate makes one.")
    return index.calibration


def _find(folder: Path, run: dict[str, Any], notes: list[str]) -> Index | None:
    if run.get("reference") == "live":
        notes.append("The reference was learned in the run itself: it has no calibration to compare dH with.")
        return None
    name = run["index"].get("path")
    for path in (Path(name), folder.parent / name) if name else ():
        try:
            index = Index.open(path)
        except (IndexFileError, OSError):
            continue
        if _is_that_of(run, index):
            return index
    notes.append(
        f"The index {name} is not there any more, or is another one now: dH is compared with no calibration. "
        "Give --index if it is elsewhere."
    )
    return None


def _is_that_of(run: dict[str, Any], index: Index) -> bool:
    """Return whether it is the index of the run; a calibration that was made since changes its hash alone."""
    told = run["index"]
    same = all(told.get(name) == value for name, value in index.describe().items() if name not in ("path", "hash"))
    return same or index.hash == told.get("hash")


def _cards(run: dict[str, Any], rows: Rows) -> list[Card]:
    finite = np.isfinite(rows["max"])
    cards = []
    if finite.any():
        at = int(np.argmax(np.where(finite, rows["max"], -np.inf)))
        where = f"atom {rows['max_id'][at]:.0f} at step {rows['step'][at]:.0f}"
        cards.append(Card("Largest dH", f"{rows['max'][at]:.5g}", "nats", where))
    n, evaluated = rows["n"], len(rows)
    atoms = f"{n.min():,.0f}" if n.min() == n.max() else f"{n.min():,.0f} to {n.max():,.0f}"
    above = int((rows["n_select"] > 0).sum())
    cards += [
        Card("Frames evaluated", f"{evaluated:,}", "", f"of {atoms} watched atoms"),
        Card("Frames above select", f"{above:,}", "", f"{above / evaluated:.2%} of the evaluated ones"),
        Card("Frames saved", f"{run.get('saved', 0):,}", "", "to candidates.extxyz"),
        Card("Events", f"{run.get('events', 0):,}"),
    ]
    seconds, share = run.get("seconds"), run.get("share")
    if isinstance(seconds, (int, float)) and n.sum():
        part = f", {share:.2%} of the run" if isinstance(share, (int, float)) else ""
        cards.append(Card("Cost of watching", f"{1e6 * seconds / n.sum():.3g}", "µs", f"per atom and evaluation{part}"))
    if broken := int((rows["band"] == "implausible").sum()):
        cards.append(Card("Implausible frames", f"{broken:,}", "", "broken: of them dH says nothing"))
    return cards


def _against_calibration(
    run: dict[str, Any], rows: Rows, calibration: Calibration | None, saved: Saved
) -> Section | None:
    if not _drawable(rows):
        return None
    marks = [(text, value) for _, text, value in list_thresholds(run)]
    maxima = {"frames of this run": rows["max"]}
    caption = "Largest dH of each evaluated frame."
    drawings: list[Drawing] = []
    if calibration is not None:
        left_out = calibration.maxima.max(axis=1)
        sizes = calibration.sizes.sum(axis=1)
        maxima["left-out frames of the reference"] = left_out
        caption = (
            f"Largest dH of each evaluated frame (of {np.median(rows['n']):.0f} atoms), and of the reference's own "
            f"frames (of {np.median(sizes):.0f}) against the index without their group. It grows with the atoms."
        )
    drawings.append(histogram(maxima, "largest dH of a frame (nats)", caption, marks, "maxima"))
    expected = _expected(calibration, saved.counts, int(rows["n"][-1]))
    if expected:
        drawings.append(survival(rows["max"], expected, marks))
    if saved.atoms:
        drawings.append(
            histogram(
                saved.atoms,
                "dH of an atom (nats)",
                f"dH of every atom of the {' and the '.join(saved.atoms)}.",
                marks,
                "atoms",
            )
        )
    return Section("How far from the reference", drawings=drawings)


def _expected(calibration: Calibration | None, counts: Mapping[str, int], n: int) -> list[tuple[float, float]]:
    """Return (threshold, rate) for the watched atoms, as far as the calibration resolves rates."""
    if calibration is None:
        return []
    if not counts and len(calibration.symbols) == 1:
        counts = {calibration.symbols[0]: n}
    found: list[tuple[float, float]] = []
    try:
        for rate in _RATES:
            found.append((max(calibration.false_alarm(rate, counts).values()), rate))
    except (CalibrationError, ValueError):  # ValueError: no atoms are known
        pass
    return found


def _environments(saved: Saved) -> Section | None:
    if not saved.scenes:
        text = (
            "There is no environment to draw: no frame with dH of its atoms was saved. Frames are saved above select, "
            "and the last one when the run ends.",
        )
        return Section("Worst environments", text=text)
    text = (
        "The atom with the largest dH of each of the worst saved frames, larger than the others and in the middle, and "
        f"all atoms within {saved.cutoff:g} Å of it: what the descriptor sees. Small atoms are not among the nearest "
        f"{saved.k}, and not in it. The colour is dH, each picture with a scale of its own.",
    )
    return Section("Worst environments", text=text, scenes=saved.scenes)


def _tables(rows: Rows, events: list[dict[str, Any]], saved: Saved) -> Section | None:
    tables = []
    which = np.flatnonzero(rows["saved"])
    if len(which):
        shown = np.sort(which[np.argsort(-rows["max"][which], kind="stable")][:_MOST_ROWS])
        names = ["step", "time", "max", "max_id", "mean", "n_select", "n_halt", "event", "novelty", "force_error"]
        names = [name for name in names if np.isfinite(rows[name][which]).any()]
        titles = {"time": "time (ps)", "max": "largest dH", "max_id": "atom", "force_error": "force error (eV/Å)"}
        head = [titles.get(name, name.replace("n_", "atoms above ").replace("mean", "mean dH")) for name in names]
        body = [
            [*(_number(rows[name][i]) for name in names), Cell(str(rows["band"][i]), band=str(rows["band"][i]))]
            for i in shown
        ]
        note = f"The {len(shown)} worst of {len(which)}." if len(shown) < len(which) else ""
        tables.append(Table("Saved frames", [*head, "band"], body, note))
    if events:
        keys = {
            "event": "event", "start": "first step", "end": "last step", "start_time": "from (ps)",
            "end_time": "to (ps)", "worst": "worst step", "max": "largest dH", "max_id": "atom",
            "n_frames": "frames", "n_atoms": "atoms",
        }  # fmt: skip
        body = [[_any(event.get(key)) for key in keys] for event in events[:_MOST_ROWS]]
        note = f"The first {_MOST_ROWS} of {len(events)}." if len(events) > _MOST_ROWS else ""
        tables.append(Table("Events", list(keys.values()), body, note))
    if saved.implausible:
        body = [[_any(step), _any(time), Cell(reason)] for step, time, reason in saved.implausible[:_MOST_ROWS]]
        n = len(saved.implausible)
        note = f"The first {_MOST_ROWS} of {n}." if n > _MOST_ROWS else ""
        tables.append(Table("Implausible frames", ["step", "time (ps)", "reason"], body, note))
    return Section("Frames and events", tables=tables) if tables else None


def _number(value: float) -> Cell:
    if not math.isfinite(value):
        return Cell("–" if math.isnan(value) else "∞", float(value))
    return cell(int(value) if value == int(value) and abs(value) < 2**53 else float(value))


def _any(value: Any) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number(float(value))
    return Cell("–" if value is None else str(value))


def _facts(folder: Path, run: dict[str, Any]) -> list[tuple[str, str]]:
    index = run["index"]
    descriptor = f"k = {index.get('k')}, cutoff = {index.get('cutoff')} Å"
    if index.get("species"):
        descriptor += f", species = {index['species']}"
    facts = [
        ("folder", str(folder)),
        ("host", str(run.get("host"))),
        ("started", str(run.get("started"))),
        *([("resumed", ", ".join(map(str, run["resumed"])))] if run.get("resumed") else []),
        ("last written", str(run.get("updated"))),
        ("index", f"{index.get('path') or 'live: learned in the run'}"),
        ("index hash", str(index.get("hash"))),
        ("index holds", f"{index.get('n_env')} environments of {', '.join(map(str, index.get('elements') or []))}, "
                        f"generation {index.get('generation')}"),
        ("descriptor", descriptor),
        ("bandwidth", f"{_short(index.get('bandwidth'))} 1/Å"),
    ]  # fmt: skip
    for name in ("select", "halt"):
        given = run.get(name)
        settled = (run.get("thresholds") or {}).get(name) or {}
        nats = ", ".join(f"{symbol} {_short(value)} nats".strip() for symbol, value in settled.items())
        if isinstance(given, dict):
            words = ", ".join(f"{key} = {value}" for key, value in given.items())
            facts.append((name, f"{words}: {nats}"))
        else:
            facts.append((name, f"{_short(given)} nats"))
    facts.append(("settings", ", ".join(f"{key} = {run[key]}" for key in _SETTINGS if run.get(key) is not None)))
    written = run.get("versions")
    if isinstance(written, dict):
        facts.append(("written by", ", ".join(f"{name} {version}" for name, version in written.items())))
    return facts


def _short(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)
