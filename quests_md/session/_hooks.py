"""What the user wants done when a frame is kept, the run halts, or an event begins or ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MonitorError

__all__ = ["HOOKS", "Hook", "Hooks"]

HOOKS = ("on_select", "on_halt", "on_event")

# A function, or a command as a list of arguments.
Hook = Callable[..., Any] | Sequence[str]

# What a command may ask for in braces, and what it might be.
_FIELDS: dict[str, Any] = {"output": "uq", "run": 1, "step": 10, "event": 1, "max": 7.5}


class Hooks:
    """Calls functions and starts commands; on rank 0 only.

    A command is started and not waited for: the run goes on. What it prints goes to commands.log in the output folder.

    Parameters
    ----------
    output
        The folder of the run.
    given
        Function or command for each name of `HOOKS`.

    Raises
    ------
    InputError
        One is neither a function nor a list of strings, or a field in braces is unknown.
    """

    def __init__(self, output: Path, given: dict[str, Hook | None]) -> None:
        self._output = output
        self._hooks = {name: hook for name, hook in given.items() if hook is not None}
        self._started: list[tuple[str, subprocess.Popen[bytes]]] = []
        for name, hook in self._hooks.items():
            if not callable(hook):
                _check_command(name, hook)

    def __contains__(self, name: str) -> bool:
        return name in self._hooks

    def call(self, name: str, arguments: Sequence[Any], fields: dict[str, Any]) -> None:
        """Call a function with `arguments`, or start a command whose {fields} are filled in.

        Raises
        ------
        MonitorError
            The function raised, or the command cannot be started.
        """
        hook = self._hooks.get(name)
        if hook is None:
            return
        try:
            if callable(hook):
                hook(*arguments)
            else:
                self._start(name, [word.format(output=self._output, **fields) for word in hook])
        except Exception as error:
            raise MonitorError(f"{name} failed: {type(error).__name__}: {error}") from error

    def _start(self, name: str, command: list[str]) -> None:
        with open(self._output / "commands.log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._started.append((name, process))

    def wait(self) -> None:
        """Wait for the commands that have been started."""
        for _, process in self._started:
            process.wait()

    def close(self) -> None:
        """Say which commands have failed; those that still run are left alone."""
        for name, process in self._started:
            code = process.poll()
            if code is None:
                process.returncode = 0  # it outlives this program, on purpose: Python would warn of it
            elif code:
                print(f"quests_md: {name}: exit code {code}, see {self._output / 'commands.log'}", file=sys.stderr)
        self._started.clear()


def _check_command(name: str, command: Any) -> None:
    is_list = isinstance(command, (list, tuple)) and command and all(isinstance(word, str) for word in command)
    if not is_list:
        raise InputError(f'{name} must be a function or a list of arguments such as ["sh", "label.sh"]: {command!r}')
    for word in command:
        try:
            word.format(**_FIELDS)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise InputError(f"{name}: {word!r}: the fields are {', '.join(f'{{{f}}}' for f in _FIELDS)}") from None
