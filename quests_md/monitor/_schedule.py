"""Two cadences: evaluate every N steps, save at most every M."""

from __future__ import annotations

from ..errors import InputError

__all__ = ["Schedule"]


class Schedule:
    """When a frame is due, and when a candidate may be saved.

    Parameters
    ----------
    every
        A frame is due when its step is a multiple of this: absolute, whatever step a run starts at.
    save_every
        Candidates are saved at least this many steps apart. A frame that halts is always saved.
    """

    def __init__(self, every: int, save_every: int) -> None:
        for name, value in (("every", every), ("save_every", save_every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        self.every = every
        self.save_every = save_every
        self._saved: tuple[int, int] | None = None  # run and step of the last saved frame
        self._before: tuple[int, int] | None = None  # and of the one before it

    def due(self, step: int) -> bool:
        """Return whether a frame of this step is to be evaluated."""
        return step % self.every == 0

    def may_save(self, run: int, step: int) -> bool:
        """Return whether a candidate of this step may be saved; a run that begins with other steps starts anew."""
        return self._saved is None or self._saved[0] != run or not 0 <= step - self._saved[1] < self.save_every

    def saved(self, run: int, step: int) -> None:
        """Remember that a frame of this step was saved."""
        self._before, self._saved = self._saved, (run, step)

    def not_saved(self) -> None:
        """Take the last word of `saved` back."""
        self._saved = self._before
