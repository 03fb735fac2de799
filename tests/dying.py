"""Calculators whose process dies, or that fail, at a call: for the tests of what stands a crash."""

from __future__ import annotations

import os
import signal

from ase.calculators.emt import EMT


class Dying(EMT):
    """EMT up to a call, at which it does `what`: the name of a signal, "exit" or "raise"."""

    def __init__(self, what, at):
        super().__init__()
        self._what, self._calls = what, at

    def calculate(self, *args, **kwargs):
        self._calls -= 1
        if self._calls == 0:
            print("these are my last words", flush=True)
            if self._what == "raise":
                raise RuntimeError("the forces\nare too large")
            if self._what == "exit":
                os._exit(3)
            os.kill(os.getpid(), getattr(signal, self._what))
        super().calculate(*args, **kwargs)
