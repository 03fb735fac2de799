"""What is shown of an index: its facts, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..descriptors import DescriptorSpec, OwnDescriptors
from ..errors import CalibrationError
from ..index import ADDED, HELD_OUT, Calibration, ErrorBound, Index, LocalBound, Residuals
from ..information import DEFAULT_BANDWIDTH
from ..sources import name_source
from .results import format_facts

__all__ = ["describe_index", "format_index", "format_source", "list_facts"]

_RATES = (0.1, 0.01)  # false alarms per independent frame, of which `index info` shows the thresholds


def describe_index(file: Path, index: Index) -> dict[str, Any]:
    from ase.data import atomic_numbers

    counts = {symbol: int((index.numbers == atomic_numbers[symbol]).sum()) for symbol in index.elements}
    distances = [[round(float(d), 6) if math.isfinite(d) else None for d in row] for row in index.pair_distances]
    return {
        **index.describe(),
        "n_frames": len(index.frame_offsets) - 1,
        "columns": index.rows.shape[1],
        "environments": counts,
        "pair_distances": distances,
        "bytes": file.stat().st_size,
        "provenance": index.provenance,
        "groups": sorted(set(index.frame_groups)),
        "calibration": None if index.calibration is None else index.calibration.describe(),
        "residuals": [one.describe() for one in index.residuals],
    }


def format_source(source: dict[str, Any]) -> str:
    digest = source.get("sha256")
    return name_source(source) + (f"  sha256 {str(digest)[:16]}" if digest else "")


def format_index(file: Path, index: Index, before: dict[str, str] | None = None) -> str:
    """Format the facts of an index; below a fact that has changed, show that of `before`."""
    text = [f"{file}: an index"]
    before = before or {}
    for name, line in list_facts(file, index).items():
        text.append(format_facts({name: line}))
        if before.get(name, line) != line:
            text.append(format_facts({"  before": before[name]}))
    return "\n".join(text)


def list_facts(file: Path, index: Index) -> dict[str, str]:
    content = describe_index(file, index)
    elements = ", ".join(f"{symbol} ({n})" for symbol, n in content["environments"].items())
    rule = {"volume": " by the volume rule", "given": " as given"}.get(index.provenance.get("bandwidth_rule", ""), "")
    if index.bandwidth == DEFAULT_BANDWIDTH and rule == " as given":
        rule = ", the default"
    pairs = [
        f"{a}-{b} {index.pair_distances[i, j]:.3f} Å"
        for i, a in enumerate(index.elements)
        for j, b in enumerate(index.elements[i:], i)
        if math.isfinite(index.pair_distances[i, j])
    ]
    environments = f"{len(index)} in {content['n_frames']} frames"
    if isinstance(index.descriptor, OwnDescriptors):
        what = {
            "environments": environments,
            "descriptor": f"own: {index.descriptor.name}; {content['columns']} columns",
            "bandwidth": f"{index.bandwidth:.6g}{rule}, in the unit of the descriptor",
        }
    else:
        what = {
            "environments": environments,
            "elements": elements,
            "descriptor": _format_spec(index.descriptor, content["columns"]),
            "bandwidth": f"{index.bandwidth:.6g} 1/Å{rule}",
            "smallest distance": ", ".join(pairs) or "no pair inside the cutoff",
        }
    return {
        **what,
        "generation": str(index.generation),
        "size": f"{content['bytes'] / 1e6:.2f} MB",
        "made": f"{index.provenance.get('created', 'at an unknown date')}",
        "hash": f"{index.hash}",
        **_list_calibration(index.calibration),
        **_list_residuals(index.residuals),
    }


def _format_spec(spec: DescriptorSpec, columns: int) -> str:
    species = f", species = {spec.species}" if spec.species else ""
    blocks = f" in blocks of {', '.join(spec.elements)}" if spec.elements else ""
    return f"k = {spec.k}, cutoff = {spec.cutoff:g} Å{species}; {columns} columns{blocks}"


def _list_calibration(calibration: Calibration | None) -> dict[str, str]:
    if calibration is None:
        return {"calibration": "none"}
    sampled = len(calibration.sizes)
    left_out = "all" if sampled == calibration.frames else f"a sample of {sampled}"
    lines = {
        "calibration": f"{left_out} of {calibration.frames} independent frames, left out with their group "
        f"(of {calibration.groups})",
        "redundancy": f"{calibration.redundancy:.2f} nats: {calibration.copies} copies, "
        f"correlation over {calibration.correlation:.3g} frames"
        if calibration.correlation > 1
        else f"{calibration.redundancy:.2f} nats: {calibration.copies} copies",
    }
    typical = calibration.typical
    atoms = ", ".join(f"{n} {symbol}" for symbol, n in typical.items()) + " watched atoms"
    if calibration.symbols == ("X",):  # own descriptors
        atoms = f"{typical['X']} rows a frame"
    for rate in _RATES:
        try:
            (value,) = set(calibration.false_alarm(rate, typical).values())
            lines[f"false alarm {rate:g}"] = f"dH = {value:.4g} at {atoms}"
        except CalibrationError:
            lines[f"false alarm {rate:g}"] = f"not resolved at {atoms}"
    return lines | _list_bound(calibration.force_error) | _list_local_bound(calibration.local_error)


def _list_bound(bound: ErrorBound | None) -> dict[str, str]:
    if bound is None:
        return {}
    lines = {"force error": f"of {bound.potential or 'a model without a name'}: {_say_covered(bound)}"}
    for symbol, bins in bound.bins.items():
        steps = ", ".join(f"{b.bound:.3g} up to dH = {b.upper:.4g}" for b in bins)
        lines[f"  {symbol}"] = f"{steps} (eV/Å)"
    return lines


def _say_covered(bound: ErrorBound | LocalBound) -> str:
    return (
        f"{100 * bound.coverage:g} % of errors below the bound; held out {100 * bound.covered:.1f} % "
        f"({100 * bound.low:.1f} to {100 * bound.high:.1f} %) of {bound.structures} structures"
    )


def _list_local_bound(bound: LocalBound | None) -> dict[str, str]:
    if bound is None:
        return {}
    lines = {"local error": f"of {bound.potential} ({bound.errors}): {_say_covered(bound)}"}
    if bound.excess is not None and bound.errors == HELD_OUT:
        lines["  factor"] = (
            f"{bound.excess:.2g} ({bound.excess_low:.2g} to {bound.excess_high:.2g}): held-out errors / those that the "
            "residuals of the reference say"
        )
    for symbol, f in bound.elements.items():
        lines[f"  s of {symbol}"] = (
            f"expected error {f.median:.3g}·(s + {ADDED:g}), bound {f.factor:.3g}·(s + {ADDED:g}) eV/Å, up to dH = "
            f"{f.largest:.4g}"
        )
    if bound.frames is not None:
        ratios = f"{bound.frames.low:.3g} and {bound.frames.high:.3g}"
        lines["  of frames"] = (
            f"expected RMSE {bound.frames.median:.3g}·√mean (s + {ADDED:g})² eV/Å; nine of ten structures between "
            f"{ratios} times that root"
        )
    return lines


def _list_residuals(residuals: Sequence[Residuals]) -> dict[str, str]:
    lines = dict[str, str]()
    for number, one in enumerate(residuals, 1):
        said = one.describe()
        rows = f"{said['labelled']} of {said['rows']} environments"
        lines["residuals" if number == 1 else f"residuals {number}"] = (
            f"of {one.name} ({one.origin}): {rows}; mean {said['mean']:.4g} eV/Å"
        )
    return lines
