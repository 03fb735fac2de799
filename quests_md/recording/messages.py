"""What a session prints besides its last line. Rank 0 prints it; each is said once."""

from __future__ import annotations

import sys

from ..monitor import Key
from .recorder import Place

__all__ = ["say_again", "say_thresholds", "say_unwatched"]


def say_thresholds(place: Place) -> bool:
    """Print the thresholds as numbers, and what these mean on this index; return whether they are known. Collective."""
    thresholds = place.monitor.thresholds
    if thresholds.resolved is None or not thresholds.watched:
        return False
    lines = [thresholds.in_words(), *thresholds.describe_meaning(place.monitor.index)]
    place.on_root(lambda: print("\n".join(f"quests_md: {line}" for line in lines), flush=True))
    return True


def say_again(place: Place, step: int, newest: Key | None) -> None:
    """Print that this step has a row already: the user may have forgotten to give the host its step."""
    if newest is not None and step < newest.step and place.is_root:
        print(f"quests_md: goes on at step {step}; steps that have their row, up to {newest.step}, get no second")


def say_unwatched(place: Place, failure: Exception) -> None:
    """Print that watching has failed and the run goes on."""
    if place.is_root:
        text = f'quests_md: WARNING: watching failed, and the run goes on without it (on_error = "warn"): {failure}'
        print(text, file=sys.stderr, flush=True)
