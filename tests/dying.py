"""Calculators whose process dies, or that fail, at a call: for the tests of what stands a crash."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

from ase.calculators.emt import EMT

HELD = 60  # seconds for which Holding holds Python's lock


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


class Holding(EMT):
    """EMT up to a call, at which it starts a program and holds Python's lock in C, as compiled code may.

    The program hears no signal that asks it to end. The numbers of both processes are told in a file.
    """

    def __init__(self, told, at):
        super().__init__()
        self._told, self._calls = told, at

    def calculate(self, *args, **kwargs):
        self._calls -= 1
        if self._calls == 0:
            deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
            command = [sys.executable, "-c", f"{deaf}; time.sleep(1000)"]
            other = subprocess.Popen(command, stdout=subprocess.PIPE)
            other.stdout.readline()
            with open(self._told + ".part", "w") as file:
                file.write(f"{os.getpid()} {other.pid}")
            os.replace(self._told + ".part", self._told)
            ctypes.PyDLL(None).sleep(HELD)
        super().calculate(*args, **kwargs)
