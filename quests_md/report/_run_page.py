"""The page of a watched run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import FrameError, IndexFileError, InputError, OutputError
from ..frame import Frame
from ..index import Calibration, Index
from ..recording import Run
from ..recording.reader import Rows, read_run
from ..sources import to_frame
from ._drawings import draw_histogram, draw_maxima, draw_survival, draw_timeline, find_alarm_thresholds
from ._page import (
    DH,
    MOST_ROWS,
    Card,
    Cell,
    Drawing,
    Page,
    Quantity,
    Scene,
    Section,
    Table,
    build_scene,
    list_files,
    make_cell,
    render,
    require_extra,
    show_environments,
)
from ._run_bias import has_bias, show_bias
from ._run_errors import EXPECTED, describe_errors, has_errors, make_error_cards, show_run_errors
from ._timeline import list_thresholds

__all__ = ["run_page"]

_RATES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
_SETTINGS = (
    "every", "save_every", "min_atoms", "min_fraction", "consecutive", "release", "min_distance", "implausible",
    "values", "precision", "history", "after", "novelty", "budget", "cutout", "ranks", "threads",
)  # fmt: skip
# Columns of an index that is calibrated for local residuals, and their titles: short, so that the table fits.
_ERRORS = {"expected_error": "expected", "force_error": "bound", "force_rmse": "RMSE", "n_outside": "outside"}
_COLUMNS = {DH: "dH", EXPECTED: "expected_error"}  # of a saved frame
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
        The output folder of the run. The run may still go on, or have failed.
    index
        The index that the run was watched against. Default: the file that run.json names, if it is still there and
        the same. Otherwise the page compares nothing with a calibration, and says so.
    worst
        Number of environments to draw: one of each of the saved frames with the largest dH.

    Raises
    ------
    InputError
        The folder holds no run, or the run was watched against another index.
    MissingExtraError
        matplotlib or jinja2 is not installed.
    """
    require_extra()
    folder = Path(folder)
    record = read_run(folder)
    run, rows, events = record.about, record.rows, record.events
    notes: list[str] = []
    if n := record.n_damaged:
        rest = "rows of monitor.csv cannot be read and are" if n > 1 else "row of monitor.csv cannot be read and is"
        notes.append(f"{n} {rest} left out.")
    calibration = _find_calibration(folder, run, index, notes)
    saved = _read_saved(record, worst, notes)
    if not len(rows):
        notes.append("No step was evaluated: there is nothing to draw.")
    drawable = bool(np.isfinite(rows["max"]).any())
    sections = [
        Section("dH along the run", drawings=[draw_timeline(run, rows, events)]) if drawable else None,
        _show_comparison(run, rows, calibration, saved) if drawable else None,
        _show_worst(saved),
        *_show_errors(rows, events, calibration, saved),
        show_bias(run, rows, events) if has_bias(rows) else None,
        _show_tables(rows, events, saved),
        Section("What was analysed", facts=_list_facts(folder, run), tables=[list_files(folder)]),
    ]
    return render(
        Page(
            title=folder.resolve().name,
            kind="A watched run",
            status=str(run.get("status", "")),
            lead=_write_lead(run),
            notes=notes,
            cards=_make_cards(run, rows) if len(rows) else (),
            sections=[section for section in sections if section is not None],
        )
    )


def _write_lead(run: dict[str, Any]) -> str:
    reason = str(run.get("reason") or "")
    reason = reason[:1].upper() + reason[1:] + "." if reason else ""
    last = run.get("last_step")
    text = _LEADS.get(str(run.get("status")), "{reason}").format(last="none" if last is None else last, reason=reason)
    return text.strip()


def _make_cards(run: dict[str, Any], rows: Rows) -> list[Card]:
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
        cards.append(Card("Implausible frames", f"{broken:,}", "", "broken: their dH means nothing"))
    return [*cards, *(make_error_cards(rows) if has_errors(rows) else [])]


def _show_comparison(run: dict[str, Any], rows: Rows, calibration: Calibration | None, saved: _Saved) -> Section:
    marks = [(text, value) for _, text, value in list_thresholds(run)]
    name, label, drawings = "frames of this run", "largest dH of a frame (nats)", list[Drawing]()
    if calibration is None:
        caption = "Largest dH of each evaluated frame."
        drawings.append(draw_histogram({name: rows["max"]}, label, caption, marks, "maxima"))
    else:
        drawings.append(draw_maxima((name, rows["max"]), float(np.median(rows["n"])), calibration, marks))
        counts = saved.counts
        if not counts and len(calibration.symbols) == 1:
            counts = {calibration.symbols[0]: int(rows["n"][-1])}
        if expected := find_alarm_thresholds(calibration, _RATES, counts):
            drawings.append(draw_survival(rows["max"], expected, marks))
    if saved.atoms:
        caption = f"dH of every atom of the {' and the '.join(saved.atoms)}."
        drawings.append(draw_histogram(saved.atoms, "dH of an atom (nats)", caption, marks, "atoms"))
    return Section("How far from the reference", drawings=drawings)


def _show_worst(saved: _Saved) -> Section:
    if DH in saved.scenes:
        return show_environments(saved.scenes[DH], "saved frames", DH.name, saved.cutoff, saved.k)
    text = (
        "There is no environment to draw: no frame with dH of its atoms was saved. Frames are saved above select, and "
        "the last one when the run ends.",
    )
    return Section(DH.title, text=text)


def _show_errors(
    rows: Rows, events: list[dict[str, Any]], calibration: Calibration | None, saved: _Saved
) -> list[Section]:
    """Return the sections of expected force errors; none if the run tells none."""
    sections = []
    if has_errors(rows):
        sections.append(show_run_errors(rows, events, calibration.local_error if calibration else None))
    if EXPECTED in saved.scenes:
        what = "expected error of its force"
        sections.append(show_environments(saved.scenes[EXPECTED], "saved frames", what, saved.cutoff, saved.k))
    return sections


def _show_tables(rows: Rows, events: list[dict[str, Any]], saved: _Saved) -> Section | None:
    tables = []
    which = np.flatnonzero(rows["saved"])
    if len(which):
        shown = np.sort(which[np.argsort(-rows["max"][which], kind="stable")][:MOST_ROWS])
        names = ["step", "time", "max", "max_id", "mean", "n_select", "n_halt", "event", "novelty", "force_error"]
        names = [name for name in names if np.isfinite(rows[name][which]).any()]
        titles = {
            "time": "ps", "max": "max dH", "max_id": "atom", "mean": "mean", "n_select": "> select",
            "n_halt": "> halt", "force_error": "bound",
        }  # fmt: skip
        caption = "Saved frames: dH in nats, atoms above the thresholds"
        if has_errors(rows) or "force_error" in names:
            caption += ", force errors in eV/Å"
        if has_errors(rows):
            names = [name for name in names if name != "force_error"] + list(_ERRORS)
            titles |= _ERRORS
        head = [titles.get(name, name) for name in names]
        body = [
            [*(_number_cell(rows[name][i]) for name in names), Cell(str(rows["band"][i]), band=str(rows["band"][i]))]
            for i in shown
        ]
        note = f"The {len(shown)} worst of {len(which)}." if len(shown) < len(which) else ""
        tables.append(Table(caption, [*head, "band"], body, note))
    if events:
        keys = {
            "event": "event", "start": "first step", "end": "last step", "start_time": "from (ps)",
            "end_time": "to (ps)", "worst": "worst step", "max": "largest dH", "max_id": "atom",
            "n_frames": "frames", "n_atoms": "atoms",
        }  # fmt: skip
        body = [[_any_cell(event.get(key)) for key in keys] for event in events[:MOST_ROWS]]
        note = f"The first {MOST_ROWS} of {len(events)}." if len(events) > MOST_ROWS else ""
        tables.append(Table("Events", list(keys.values()), body, note))
    if saved.implausible:
        body = [
            [_any_cell(step), _any_cell(time), Cell(reason)] for step, time, reason in saved.implausible[:MOST_ROWS]
        ]
        n = len(saved.implausible)
        note = f"The first {MOST_ROWS} of {n}." if n > MOST_ROWS else ""
        tables.append(Table("Implausible frames", ["step", "time (ps)", "reason"], body, note))
    return Section("Frames and events", tables=tables) if tables else None


def _number_cell(value: float) -> Cell:
    if not math.isfinite(value):
        return Cell("–" if math.isnan(value) else "∞", float(value))
    return make_cell(int(value) if value == int(value) and abs(value) < 2**53 else float(value))


def _any_cell(value: Any) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number_cell(float(value))
    return Cell("–" if value is None else str(value))


def _list_facts(folder: Path, run: dict[str, Any]) -> list[tuple[str, str]]:
    index, is_live = run["index"], run.get("reference") == "live"
    descriptor = f"k = {index.get('k')}, cutoff = {index.get('cutoff')} Å"
    if index.get("describe"):
        descriptor = f"{index.get('name')}, {index.get('width')} columns, by {index['describe']}"
    if index.get("species"):
        descriptor += f", species = {index['species']}"
    facts = [
        ("folder", str(folder)),
        ("host", str(run.get("host"))),
        ("started", str(run.get("started"))),
        *([("resumed", ", ".join(map(str, run["resumed"])))] if run.get("resumed") else []),
        ("last written", str(run.get("updated"))),
        ("index", f"{index.get('path') or ('live: learned in the run' if is_live else 'not saved to a file')}"),
        *([("index hash", str(index["hash"]))] if index.get("hash") else []),
        ("index holds", f"{index.get('n_env')} environments of {', '.join(map(str, index.get('elements') or []))}, "
                        f"generation {index.get('generation')}"),
        ("descriptor", descriptor),
        ("bandwidth", f"{_shorten(index.get('bandwidth'))} 1/Å"),
    ]  # fmt: skip
    for name in ("select", "halt"):
        given = run.get(name)
        settled = (run.get("thresholds") or {}).get(name) or {}
        nats = ", ".join(f"{symbol} {_shorten(value)} nats".strip() for symbol, value in settled.items())
        if isinstance(given, dict):
            words = ", ".join(f"{key} = {value}" for key, value in given.items())
            facts.append((name, f"{words}: {nats}"))
        else:
            facts.append((name, f"{_shorten(given)} nats"))
    facts.append(("settings", ", ".join(f"{key} = {run[key]}" for key in _SETTINGS if run.get(key) is not None)))
    written = run.get("versions")
    if isinstance(written, dict):
        facts.append(("written by", ", ".join(f"{name} {version}" for name, version in written.items())))
    return facts


def _shorten(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else str(value)


# -- the saved frames --------------------------------------------------------------------------------------------------


@dataclass
class _Saved:
    """Results from the saved frames of a run.

    Attributes
    ----------
    cutoff, k
        Of the descriptor; the cutoff in Å.
    scenes
        The worst environments by each quantity that the frames have, worst first.
    atoms
        dH (nats) of the watched atoms of the worst and of the last frame, by the name of the frame.
    counts
        Number of watched atoms in the last frame, by symbol. Empty without a last frame.
    implausible
        Step, time and reason of the implausible frames.
    """

    cutoff: float
    k: int
    scenes: dict[Quantity, list[Scene]] = field(default_factory=dict)
    atoms: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    implausible: list[tuple[Any, Any, str]] = field(default_factory=list)


@dataclass
class _SavedFrame:
    """A saved frame and a quantity (n,) of its atoms, nan where it is unknown; that of the atom `worst` is largest."""

    frame: Frame
    quantity: Quantity
    values: NDArray[np.float64]
    worst: int
    atoms: Any

    @property
    def maximum(self) -> float:
        return float(self.values[self.worst])

    @property
    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = self.atoms.info
        return info


def _read_saved(run: Run, most: int, notes: list[str]) -> _Saved:
    """Read the candidates, the last and the implausible frames of a run. Add what is wrong with them to `notes`."""
    index = run.about["index"]
    saved = _Saved(float(index.get("cutoff") or 5.0), int(index.get("k") or 32))
    worst: dict[Quantity, dict[tuple[Any, int], _SavedFrame]] = {quantity: {} for quantity in _COLUMNS}
    for found in _read_frames(run.candidates(), notes):
        _keep_worst(worst, found, most)
    last = next(_read_frames(_read_last(run), notes), None)
    if last is not None:
        _keep_worst(worst, last, most)
        watched = last.frame.numbers[np.isfinite(last.values)]
        saved.counts = {SYMBOLS[z]: int(n) for z, n in zip(*np.unique(watched, return_counts=True), strict=True)}
    for quantity, kept in worst.items():
        for found in _order(kept):
            try:
                scene = _build_scene(found, saved, index.get("species") == "neighbours")
            except FrameError as error:
                if quantity is DH:  # it is the same for all quantities
                    notes.append(f"A saved frame cannot be drawn: {error}")
                continue
            saved.scenes.setdefault(quantity, []).append(scene)
    ordered = _order(worst[DH])
    shown = {} if last is None else {last.frame.step: ("last frame", last)}
    if ordered:  # the worst frame may be the last one, too: then it is shown once
        shown.setdefault(ordered[0].frame.step, ("worst saved frame", ordered[0]))
    for step, (name, found) in shown.items():
        if found.info.get("values", "exact") == "exact":  # a histogram of bounds would mean nothing
            saved.atoms[f"{name}, step {step}"] = found.values
    for atoms in _skip_damage(run.implausible(), notes):
        saved.implausible.append((atoms.info.get("step"), atoms.info.get("time"), str(atoms.info.get("reason", ""))))
    return saved


def _keep_worst(worst: dict[Quantity, dict[tuple[Any, int], _SavedFrame]], found: _SavedFrame, most: int) -> None:
    """Add a frame under each quantity that it has, and remove the least bad one if there are now more than `most`."""
    for quantity, kept in worst.items():
        one = _judge(found.atoms, found.frame, quantity)
        if one is None:
            continue
        kept[one.info.get("run"), one.frame.step] = one
        if len(kept) > most:  # of equal ones the first stays
            del kept[min(reversed(kept), key=lambda key: kept[key].maximum)]


def _order(kept: dict[tuple[Any, int], _SavedFrame]) -> list[_SavedFrame]:
    return sorted(kept.values(), key=lambda found: -found.maximum)


def _read_last(run: Run) -> Iterator[Any]:
    atoms = run.last()
    if atoms is not None:
        yield atoms


def _read_frames(frames: Iterator[Any], notes: list[str]) -> Iterator[_SavedFrame]:
    """Yield the frames that hold a finite dH."""
    for atoms in _skip_damage(frames, notes):
        if _find_column(atoms, DH) is not None and (found := _judge(atoms, to_frame(atoms), DH)) is not None:
            yield found


def _judge(atoms: Any, frame: Frame, quantity: Quantity) -> _SavedFrame | None:
    """Return a saved frame with a quantity; None if no atom of it has one."""
    values = _find_column(atoms, quantity)
    if values is None:
        return None
    return _SavedFrame(frame, quantity, values, int(np.argmax(np.where(np.isfinite(values), values, -np.inf))), atoms)


def _find_column(atoms: Any, quantity: Quantity) -> NDArray[np.float64] | None:
    """Return a column of numbers, at least one of them finite."""
    column = atoms.arrays.get(_COLUMNS[quantity])
    if column is None or column.ndim != 1 or column.dtype.kind not in "fiu" or not np.isfinite(column).any():
        return None
    return np.asarray(column, dtype=np.float64)


def _skip_damage(frames: Iterator[Any], notes: list[str]) -> Iterator[Any]:
    """Yield the frames before the first damaged one, and note the damage."""
    try:
        yield from frames
    except OutputError as error:
        notes.append(f"{error}. The frames before it are shown.")


def _build_scene(found: _SavedFrame, saved: _Saved, by_element: bool) -> Scene:
    frame, info, quantity = found.frame, found.info, found.quantity
    assert frame.ids is not None
    symbol, which = SYMBOLS[int(frame.numbers[found.worst])], int(frame.ids[found.worst])
    facts = [(quantity.name, f"{found.maximum:.5g} {quantity.unit}")]
    if quantity is EXPECTED:
        facts += describe_errors(found.atoms, found.worst)
    if np.isfinite(frame.time):
        facts.append(("time", f"{frame.time:.6g} ps"))
    if info.get("band"):
        facts.append(("band", str(info["band"])))
    title = f"step {frame.step}, {symbol} {which}"
    how: dict[str, Any] = {"by_element": by_element, "quantity": quantity}
    return build_scene(frame, found.values, found.worst, saved.cutoff, saved.k, title, tuple(facts), **how)


# -- the calibration of the index -------------------------------------------------------------------------------------


def _find_calibration(folder: Path, run: dict[str, Any], index: Index | None, notes: list[str]) -> Calibration | None:
    """Return the calibration of the index of the run, if there is one. Otherwise note why there is none."""
    if index is None:
        index = _open_index(folder, run, notes)
    elif not _is_index_of(run, index):
        raise InputError(
            f"{index.path} is not the index that {folder} was watched against: it is {index.describe()}, and run.json "
            f"has {run['index']}: give that one, or none"
        )
    if index is None:
        return None
    if index.hash != run["index"].get("hash"):
        notes.append(f"{index.path} was written again after the run, perhaps to calibrate it: its hash has changed.")
    if index.calibration is None:
        notes.append("The index has no calibration to compare dH with: quests-md index calibrate makes one.")
    return index.calibration


def _open_index(folder: Path, run: dict[str, Any], notes: list[str]) -> Index | None:
    if run.get("reference") == "live":
        notes.append("The reference was learned in the run itself: it has no calibration to compare dH with.")
        return None
    name = run["index"].get("path")
    if name is None:
        notes.append("The index of this run was not saved to a file: dH is compared with no calibration.")
        return None
    for path in (Path(name), folder.parent / name):
        try:
            index = Index.open(path)
        except IndexFileError as error:
            if path.exists():
                notes.append(f"The index of this run cannot be used: {error}.")
            continue
        if _is_index_of(run, index):
            return index
    notes.append(
        f"The index {name} is not there any more, or is another one now: dH is compared with no calibration. "
        "If the index is elsewhere, give --index."
    )
    return None


def _is_index_of(run: dict[str, Any], index: Index) -> bool:
    """Return whether this is the index of the run. A calibration that was made later changes only its hash."""
    known = run["index"]
    same = all(known.get(name) == value for name, value in index.describe().items() if name not in ("path", "hash"))
    return same or index.hash == known.get("hash")
