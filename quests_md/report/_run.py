"""What pictures and pages take from run.json."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["levels"]


def levels(run: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Return the finite thresholds of a run, in nats: "select" or "halt", how to call it, and the number.

    One that is the same for all elements is named once.
    """
    found = []
    for name in ("select", "halt"):
        settled = (run.get("thresholds") or {}).get(name)
        if settled is None:
            settled = {"": run[name]} if isinstance(run.get(name), (int, float, str)) else {}
        values = {symbol: float(value) for symbol, value in settled.items()}
        if len(set(values.values())) == 1:
            values = {"": next(iter(values.values()))}
        found += [(name, f"{name} {symbol}".strip(), v) for symbol, v in values.items() if math.isfinite(v)]
    return found
