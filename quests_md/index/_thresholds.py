"""Thresholds as they are given, and the numbers of nats that they come to."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from ..elements import SYMBOLS
from ..errors import CalibrationError, InputError
from ._calibration import Calibration

__all__ = ["check_threshold", "resolve_threshold"]

_KEYS = ("false_alarm", "per_element", "force_error")


def check_threshold(name: str, given: Any) -> None:
    """Raise `InputError` unless `given` can be a threshold, whatever the index: a number of nats or a mapping.

    Parameters
    ----------
    name
        What it is called, for the message: "select", say.
    given
        Nats; or a mapping of chemical symbols to nats, ``{"false_alarm": rate}`` (0 < rate < 1, per independent
        frame), the same with ``"per_element": True``, or ``{"force_error": x}`` (eV/Å).
    """
    if not isinstance(given, Mapping):
        if not _is_number(given) or math.isnan(given):
            raise InputError(
                f"{name} must be a number of nats, nats by chemical symbol, a false_alarm rate or a force_error, "
                f"not {given!r}"
            )
        return
    for key in given:
        if key not in _KEYS and key not in SYMBOLS[1:]:
            symbol = str(key).capitalize()
            near = [symbol] if symbol in SYMBOLS[1:] else difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_KEYS)}, or chemical symbols"
            raise InputError(f"{name}: unknown key {key!r}; {hint}")
    words = [key for key in given if key in _KEYS]
    if words:
        _check_words(name, given)
    elif not given:
        raise InputError(f"{name} holds nothing: give nats by chemical symbol, a false_alarm rate or a force_error")
    for key in given:
        if key not in _KEYS and (not _is_number(given[key]) or math.isnan(given[key])):
            raise InputError(f"{name}: {key} must be a number of nats, not {given[key]!r}")


def _check_words(name: str, given: Mapping[str, Any]) -> None:
    if set(given) not in ({"false_alarm"}, {"false_alarm", "per_element"}, {"force_error"}):
        raise InputError(
            f"{name}: {', '.join(map(str, given))} do not go together: give a false_alarm rate (and per_element), "
            "or a force_error, or nats by chemical symbol"
        )
    rate, error, per_element = given.get("false_alarm", 0.5), given.get("force_error", 1.0), given.get("per_element")
    if not _is_number(rate) or not 0.0 < rate < 1.0:
        raise InputError(f"{name}: false_alarm must lie between 0 and 1, a rate per independent frame, not {rate!r}")
    if not (per_element is None or isinstance(per_element, bool)):
        raise InputError(f"{name}: per_element must be true or false, not {per_element!r}")
    if not _is_number(error) or not 0.0 < error < math.inf:
        raise InputError(f"{name}: force_error must be a positive number of eV/Å, not {error!r}")


def resolve_threshold(name: str, given: Any, index: Any, counts: Mapping[str, int]) -> dict[str, float]:
    """Return the threshold of every watched element, in nats.

    Parameters
    ----------
    name, given
        As in `check_threshold`.
    index
        The reference: its `calibration` is asked for rates and force errors.
    counts
        Watched atoms by chemical symbol.

    Raises
    ------
    InputError
        As in `check_threshold`; or a watched element has no value.
    CalibrationError
        The index has no calibration, or it cannot answer; the message has the reason and what would help.
    """
    check_threshold(name, given)
    watched = {symbol: n for symbol, n in counts.items() if n > 0}
    if not isinstance(given, Mapping):
        return dict.fromkeys(watched, float(given))
    if "false_alarm" in given or "force_error" in given:
        calibration: Calibration | None = getattr(index, "calibration", None)
        path = getattr(index, "path", None) or "FILE"
        if calibration is None:
            raise CalibrationError(f"{name}: the index has no calibration; make it: quests-md index calibrate {path}")
        try:
            if "false_alarm" in given:
                per_element = bool(given.get("per_element", False))
                return calibration.false_alarm(given["false_alarm"], watched, per_element=per_element)
            if calibration.force_error is None:
                raise CalibrationError(
                    f"the index has no bound of the force error; make it: quests-md index calibrate {path} "
                    "--errors LABELLED"
                )
            return {symbol: calibration.force_error.threshold(given["force_error"], symbol) for symbol in watched}
        except CalibrationError as error:
            raise CalibrationError(f"{name}: {error}") from None
    missing = [symbol for symbol in watched if symbol not in given]
    if missing:
        raise InputError(f"{name} has no value for {', '.join(missing)}, which is watched: it has {', '.join(given)}")
    return {symbol: float(given[symbol]) for symbol in watched}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
