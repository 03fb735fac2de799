"""The page of a dataset, or of an index."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec
from ..elements import SYMBOLS
from ..errors import InputError
from ..frame import Frame, as_frames
from ..index import Calibration, Index
from ..information import DEFAULT_BANDWIDTH, Information, information
from ..sources import name_source
from ._dataset_errors import Environments, show_dataset_errors
from ._drawings import draw_histogram, draw_maxima, find_alarm_thresholds
from ._page import (
    MOST_ROWS,
    Card,
    Cell,
    Page,
    Scene,
    Section,
    Table,
    build_scene,
    list_sources,
    make_cell,
    render,
    require_extra,
    show_environments,
)

__all__ = ["dataset_page"]

_COVERED, _BELOW = 1e-5, "dH < 1e-5"  # nats: the threshold of an overlap
_RATES = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class _Dataset:
    """Descriptors (n_env, d), their frames and elements. `frames` is empty if there are only descriptors."""

    rows: NDArray[Any]
    offsets: NDArray[np.int64]
    numbers: NDArray[Any]
    groups: tuple[str, ...]
    spec: DescriptorSpec
    frames: list[Frame]

    def owner(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def dataset_page(
    frames: Any,
    *,
    spec: DescriptorSpec | None = None,
    bandwidth: float | None = None,
    index: Index | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
    title: str = "",
    worst: int = 8,
    threads: int | None = None,
    report: Callable[[float], None] | None = None,
    errors: Sequence[NDArray[np.float64]] | None = None,
) -> str:
    """Return a self-contained page (HTML) of a dataset: its information, and its dH against itself and an index.

    Parameters
    ----------
    frames
        `Frame` or ``ase.Atoms``, or an iterable of them. Or an `Index`: it holds no atoms, so no environment is drawn.
        If frames have a `group`, the page has a table of groups.
    spec
        The descriptor. Default: the one of the index, else ``DescriptorSpec()``.
    bandwidth
        h in 1/Å. Default: the one of the index, else 0.015.
    index
        The index to compare the frames with, by its own descriptor and bandwidth.
    sources
        The files of the frames (`quests_md.sources.describe_source`), listed with their hashes.
    title
        Title of the page.
    worst
        Number of environments to draw: in each of the worst frames, the one with the largest dH.
    threads
        Number of threads. None takes all cores.
    report
        Called with the share of the pairs that are done.
    errors
        Of each frame, (n,) the force error of a potential on each environment in eV/Å: compared with what the index
        expects. The index must be calibrated for local residuals.

    Raises
    ------
    InputError
        There are no frames or no atoms, a frame has no descriptor, or the index has another descriptor or bandwidth; or
        it has no such calibration, or the errors are not finite numbers for these frames.
    MissingExtraError
        matplotlib or jinja2 is not installed.
    """
    require_extra()
    if index is not None and bandwidth not in (None, index.bandwidth):
        raise InputError(f"the index has the bandwidth {index.bandwidth:g}, but {bandwidth:g} is asked for")
    known = frames if isinstance(frames, Index) else index
    if known is not None and spec not in (None, known.spec):
        raise InputError(f"the index was built with {known.spec}, but {spec} is asked for")
    if isinstance(frames, Index):
        if index is not None and index.spec != frames.spec:
            raise InputError(f"an index built with {frames.spec} cannot be compared with one of {index.spec}")
        dataset = _read_index(frames)
    else:
        dataset = _read_frames(frames, spec, index, threads)
    own = index or (frames if isinstance(frames, Index) else None)
    h = bandwidth if bandwidth is not None else (own.bandwidth if own is not None else DEFAULT_BANDWIDTH)
    held = information(dataset.rows, h, threads=threads, report=report)
    against = None if index is None else index.delta_entropy(dataset.rows, threads)
    dH = (held.delta_entropy if against is None else against) + 0.0  # no minus zero
    shown, more = _show_errors(dataset, errors, index, threads)
    sections = [
        _show_set(held),
        _show_comparison(dataset, against, index),
        shown,
        _show_calibration(frames.calibration) if isinstance(frames, Index) else None,
        _show_worst(dataset, dH, worst, index is not None),
        _show_tables(dataset, held, against),
        _show_sources(frames if isinstance(frames, Index) else None, dataset, h, index, sources),
    ]
    return render(
        Page(
            title=title or ("An index" if isinstance(frames, Index) else "A dataset"),
            kind="An index of a reference" if isinstance(frames, Index) else "A dataset",
            lead=_write_lead(held, against),
            notes=() if dataset.frames else ("An index holds no atoms: no environments are drawn.",),
            cards=_make_cards(dataset, held, against) + more,
            sections=[section for section in sections if section is not None],
        )
    )


def _read_frames(frames: Any, spec: DescriptorSpec | None, index: Index | None, threads: int | None) -> _Dataset:
    kept = [frame for frame in as_frames(frames) if len(frame.centres)]
    if not kept:
        raise InputError("the dataset is empty: no frames, or no atoms in them")
    if index is not None:
        spec = index.spec
        for frame in kept:
            index.check_elements(frame.numbers)
    present = set(np.concatenate([frame.numbers for frame in kept]).tolist()) - {0}
    spec = (spec or DescriptorSpec()).for_elements(present)
    return _Dataset(
        rows=spec.compute(kept, threads),
        offsets=np.cumsum([0] + [len(frame.centres) for frame in kept], dtype=np.int64),
        numbers=np.concatenate([frame.numbers[frame.centres] for frame in kept]),
        groups=tuple(frame.group for frame in kept if frame.group is not None),
        spec=spec,
        frames=kept,
    )


def _read_index(index: Index) -> _Dataset:
    places = np.argsort(index.order)
    with index.reading():
        rows, numbers = (index.rows + index.centre)[places], index.numbers[places]
    if index.spec.by_centre:
        rows = np.column_stack([numbers, rows])
    return _Dataset(rows, np.asarray(index.frame_offsets), numbers, index.frame_groups, index.spec, [])


def _write_lead(held: Information, against: NDArray[np.float64] | None) -> str:
    alike = 1.0 - math.exp(held.diversity) / held.n_env
    what = "environments that hold" if held.n_env > 1 else "environment that holds"
    text = f"{held.n_env:,} {what} {held.entropy:.4g} of at most {math.log(held.n_env):.4g} nats"
    text += f": about {alike:.0%} of them repeat others." if alike >= 0.005 else ": hardly any repeats another."
    if against is not None:
        text += f" {float((against < _COVERED).mean()):.1%} of them overlap with the index ({_BELOW})."
    return text


def _make_cards(dataset: _Dataset, held: Information, against: NDArray[np.float64] | None) -> list[Card]:
    elements, counts = np.unique(dataset.numbers, return_counts=True)
    made = ", ".join(f"{n:,} {SYMBOLS[z]}" for z, n in zip(elements.tolist(), counts.tolist(), strict=True))
    cards = [
        Card("Environments", f"{held.n_env:,}", "", made),
        Card("Frames", f"{len(dataset.offsets) - 1:,}"),
        Card("Entropy H", f"{held.entropy:.4f}", "nats", f"at most {math.log(held.n_env):.4f}"),
        Card("Diversity D", f"{held.diversity:.4f}", "nats", f"about {math.exp(held.diversity):,.0f} different ones"),
        Card("Information gap", f"{held.information_gap:.4f}", "nats", "ln N − H: the redundancy"),
        Card("Efficiency", f"{held.efficiency:.2%}", "", "H / ln N"),
    ]
    if against is not None:
        cards += [
            Card("Overlap with the index", f"{(against < _COVERED).mean():.2%}", "", f"{_BELOW} nats"),
            Card("Largest dH", f"{against.max():.5g}", "nats", "against the index"),
        ]
    return cards


def _show_set(held: Information) -> Section:
    text = (
        "dH of an environment against the set itself is −ln n, where n is the number of environments of the set that "
        "are like it, itself included: 0 if it is alone, −7 if the kernel sees about 1100 as the same.",
    )
    caption = f"dH of every environment against the set itself, at h = {held.bandwidth:.6g} 1/Å. The mean is H − ln N."
    marks = [("mean", -held.information_gap)]
    drawing = draw_histogram({"the set itself": held.delta_entropy}, "dH (nats)", caption, marks, "itself")
    return Section("What the set holds", text=text, drawings=[drawing])


def _show_comparison(dataset: _Dataset, against: NDArray[np.float64] | None, index: Index | None) -> Section | None:
    if against is None or index is None:
        return None
    caption = f"dH of every environment against the index, at h = {index.bandwidth:.6g} 1/Å."
    known, marks = index.calibration, list[tuple[str, float]]()
    if known is not None:
        marks = _name_alarms(find_alarm_thresholds(known, _RATES[:2], known.typical))
        if marks:
            caption += " The lines are thresholds. Their false-alarm rates are for frames as large as the reference's."
    drawings = [draw_histogram({"environments": against}, "dH of an atom (nats)", caption, marks, "against")]
    text: list[str] = []
    if known is None:
        text.append("The index has no calibration to compare with: quests-md index calibrate makes one.")
    else:
        maxima = np.maximum.reduceat(against, dataset.offsets[:-1])
        n_atoms = float(np.median(np.diff(dataset.offsets)))
        drawings.append(draw_maxima(("frames of this set", maxima), n_atoms, known, marks))
    return Section("Against the index", text=text, drawings=drawings)


def _show_errors(
    dataset: _Dataset, errors: Sequence[NDArray[np.float64]] | None, index: Index | None, threads: int | None
) -> tuple[Section | None, list[Card]]:
    if errors is None:
        return None, []
    if index is None or not dataset.frames:
        raise InputError("force errors are compared with what an index expects of frames: give an index, and frames")
    known = [some for some in errors if len(some)]  # as frames without environments are left out
    data = Environments(dataset.rows, dataset.numbers, dataset.offsets, dataset.groups)
    return show_dataset_errors(known, data, index, threads)


def _name_alarms(alarms: Sequence[tuple[float, float]]) -> list[tuple[str, float]]:
    return [(f"{100 * rate:g} % false alarms", nats) for rate, nats in alarms]


def _show_calibration(calibration: Calibration | None) -> Section:
    if calibration is None:
        return Section("Calibration", text=["The index has none: quests-md index calibrate makes one."])
    columns = {
        symbol: calibration.maxima[calibration.sizes[:, c] > 0, c] for c, symbol in enumerate(calibration.symbols)
    }
    alarms = _name_alarms(find_alarm_thresholds(calibration, _RATES, calibration.typical))
    caption = "Largest dH of the frames of the reference against the index without their group, by element of the atom."
    sets = dict(list(columns.items())[:3])
    drawing = draw_histogram(sets, "largest dH of a frame (nats)", caption, alarms, "calibration")
    size = ", ".join(f"{n} {symbol}" for symbol, n in calibration.typical.items())
    facts = [
        ("independent frames", f"{calibration.frames} in {calibration.groups} groups; {calibration.copies} copies"),
        ("left out", f"{len(calibration.sizes)} of them"),
        ("correlation", f"{calibration.correlation:.3g} frames"),
        ("redundancy", f"{calibration.redundancy:.3g} nats"),
        *((name, f"{nats:.6g} nats, for frames of {size}") for name, nats in alarms),
    ]
    return Section("Calibration", drawings=[drawing], facts=facts)


def _show_worst(dataset: _Dataset, dH: NDArray[np.float64], worst: int, compared: bool) -> Section | None:
    if not dataset.frames:
        return None
    rows = [int(a + np.argmax(dH[a:b])) for a, b in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)]
    chosen = sorted(range(len(rows)), key=lambda f: -dH[rows[f]])[:worst]
    scenes = [_build_scene(dataset, dH, f, rows[f] - int(dataset.offsets[f])) for f in chosen]
    against = f"dH against {'the index' if compared else 'the set itself'}"
    return show_environments(scenes, "frames", against, dataset.spec.cutoff, dataset.spec.k)


def _build_scene(dataset: _Dataset, dH: NDArray[np.float64], which: int, worst: int) -> Scene:
    frame, first = dataset.frames[which], int(dataset.offsets[which])
    values = np.full(len(frame.numbers), np.nan)
    values[frame.centres] = dH[first : int(dataset.offsets[which + 1])]
    row = int(frame.centres[worst])
    facts = [("dH", f"{values[row]:.5g} nats"), *([("group", frame.group)] if frame.group is not None else [])]
    assert frame.ids is not None
    title = f"frame {which}, {SYMBOLS[int(frame.numbers[row])]} {int(frame.ids[row])}"
    spec = dataset.spec
    by_element = spec.species == "neighbours"
    return build_scene(frame, values, row, spec.cutoff, spec.k, title, tuple(facts), by_element=by_element)


def _show_tables(dataset: _Dataset, held: Information, against: NDArray[np.float64] | None) -> Section:
    kinds = {"itself": held.delta_entropy} | ({} if against is None else {"the index": against})
    head = [f"{which}, {kind}" for kind in kinds for which in ("mean", "largest")]
    what = f"mean and largest dH (nats) against {' and '.join(kinds)}"
    covered = [] if against is None else [_BELOW]
    tables = []
    if dataset.groups:
        of_row = np.array(dataset.groups)[dataset.owner()]
        body = [
            [Cell(name), make_cell(dataset.groups.count(name)), *_statistics(kinds, of_row == name)]
            for name in sorted(set(dataset.groups))
        ]
        tables.append(Table(f"Groups: {what}", ["group", "frames", "environments", *head, *covered], body))
    dH = held.delta_entropy if against is None else against
    maxima = np.maximum.reduceat(dH, dataset.offsets[:-1])
    shown = np.sort(np.argsort(-maxima, kind="stable")[:MOST_ROWS])
    with_group = bool(dataset.groups)
    body = [
        [
            make_cell(int(f)),
            *([Cell(dataset.groups[f])] if with_group else []),
            *_statistics(kinds, slice(dataset.offsets[f], dataset.offsets[f + 1])),
        ]
        for f in shown
    ]
    note = f"The {len(shown)} with the largest dH of {len(maxima)} frames." if len(shown) < len(maxima) else ""
    names = ["frame", *(["group"] if with_group else []), "environments", *head, *covered]
    tables.append(Table(f"Frames: {what}", names, body, note))
    return Section("Groups and frames" if with_group else "Frames", tables=tables)


def _statistics(kinds: Mapping[str, NDArray[np.float64]], which: Any) -> list[Cell]:
    cells: list[Cell] = []
    for values in kinds.values():
        cells += [make_cell(float(values[which].mean())), make_cell(float(values[which].max()))]
    last = list(kinds.values())[-1][which]
    covered = [Cell(f"{(last < _COVERED).mean():.1%}", float((last < _COVERED).mean()))] if len(kinds) > 1 else []
    return [make_cell(len(last)), *cells, *covered]


def _show_sources(
    own: Index | None, dataset: _Dataset, h: float, index: Index | None, sources: Sequence[Mapping[str, Any]]
) -> Section:
    spec = dataset.spec
    facts = [
        (
            "descriptor",
            f"k = {spec.k}, cutoff = {spec.cutoff:g} Å" + (f", species = {spec.species}" if spec.species else ""),
        ),
        ("bandwidth", f"{h:.8g} 1/Å"),
    ]
    for name, one in (("index", own), ("compared with", index)):
        if one is not None:
            facts += [
                (name, f"{Path(one.path).name if one.path else 'not in a file'}, generation {one.generation}"),
                ("its hash", f"{one.hash}"),
                ("it holds", f"{len(one):,} environments of {', '.join(one.elements)}"),
            ]
            facts += [("made of", f"{name_source(s)}\nsha256 {s.get('sha256', 'unknown')}") for s in _made_of(one)]
    return Section("What was analysed", facts=facts, tables=[list_sources(sources)] if sources else [])


def _made_of(index: Index) -> list[dict[str, Any]]:
    found = list(index.provenance.get("sources", []))
    for added in index.provenance.get("generations", []):
        found += added["sources"]
    return found
