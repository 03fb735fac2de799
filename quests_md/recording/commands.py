"""Functions and commands of the user, for a kept frame, a halt, and the beginning and end of an event."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, MonitorError
from ..monitor import Decision, Key
from .recorder import ALL_BANDS, Moment, Place, Recorder

__all__ = ["HOOKS", "Commands", "Hook"]

HOOKS = ("on_select", "on_halt", "on_event")
COMMANDS_LOG = "commands.log"

# A function, or a command as a list of arguments.
Hook = Callable[..., Any] | Sequence[str]

# The fields that a command may use in braces, with an example of each.
_FIELDS: dict[str, Any] = {"output": "uq", "run": 1, "step": 10, "event": 1, "max": 7.5}
# Errors that keep a program from being started for now: too many processes, no memory, no free file descriptor.
_SHORT = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


@dataclass
class _Command:
    name: str
    words: list[str]
    key: Key


class Commands(Recorder):
    """Call functions and start commands; on rank 0 only.

    The run does not wait for a command. A command that fails is reported when it has ended. Its output goes to
    commands.log in the output folder.

    Parameters
    ----------
    given
        Function or command for each name of `HOOKS`.
    most
        How many commands may run at the same time; the others wait.

    Attributes
    ----------
    is_busy
        Whether commands are running or waiting.

    Raises
    ------
    InputError
        A hook is neither a function nor a list of strings, a field in braces is unknown, or `most` is not at least 1.
    """

    def __init__(self, place: Place, given: dict[str, Hook | None], most: int) -> None:
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise InputError(f"commands_at_once must be a whole number of at least 1, not {most!r}")
        self._place, self._most = place, most
        self._hooks = {name: hook for name, hook in given.items() if hook is not None}
        self._running: list[tuple[_Command, subprocess.Popen[bytes]]] = []
        self._waiting: deque[_Command] = deque()
        self.is_busy = False
        self.bands = ALL_BANDS if self._hooks else frozenset()
        for name, hook in self._hooks.items():
            if not callable(hook):
                _check_command(name, hook)

    def see(self, moment: Moment) -> None:
        """Report each frame that has become a candidate, and an event that begins or ends."""
        comm, decision = self._place.comm, moment.decision
        for each in moment.candidates if "on_select" in self._hooks else ():
            whole = each.whole(comm)
            frame = None if whole is None else whole.frame
            self._tell("on_select", (frame, each.decision), each.decision)
        if (decision.begins or decision.ends) and "on_event" in self._hooks:
            events = self._place.monitor.events
            self._tell("on_event", (events.ended if decision.ends else events.current,), decision)

    def tell_halt(self, moment: Moment) -> None:
        """Report that the run is told to stop. Collective."""
        if "on_halt" in self._hooks:
            whole = moment.whole(self._place.comm)
            self._tell("on_halt", (None if whole is None else whole.frame, moment.decision), moment.decision)

    def _tell(self, name: str, arguments: Sequence[Any], decision: Decision) -> None:
        self._place.on_root(lambda: self._call(name, arguments, decision))

    def _call(self, name: str, arguments: Sequence[Any], decision: Decision) -> None:
        """Call a function with `arguments`, or start a command after filling in its {fields}."""
        hook = self._hooks[name]
        try:
            if callable(hook):
                hook(*arguments)
                return
            fields = {"run": decision.run, "step": decision.step, "event": decision.event, "max": decision.maximum}
            words = [word.format(output=self._place.folder.path, **fields) for word in hook]
            self._waiting.append(_Command(name, words, decision.key))
            self.look()
        except Exception as error:
            raise MonitorError(f"{name} failed: {type(error).__name__}: {error}") from error

    def look(self) -> None:
        """Forget commands that have ended, report those that have failed, and start those that wait."""
        going = []
        for command, process in self._running:
            code = process.poll()
            if code is None:
                going.append((command, process))
            elif code:
                log = self._place.folder.path / COMMANDS_LOG
                _say(f"{command.name}: exit code {code}, see {log} (step {command.key.step})")
        self._running = going
        while self._waiting and len(self._running) < self._most:
            self._start(self._waiting.popleft())
        self.is_busy = bool(self._running or self._waiting)

    def _start(self, command: _Command) -> None:
        """Start a command. If the system has no room for it, report that it is lost; the run goes on."""
        try:
            with open(self._place.folder.path / COMMANDS_LOG, "ab") as log:
                process = subprocess.Popen(command.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno not in _SHORT:
                raise
            why = error.strerror if isinstance(error, OSError) else "out of memory"
            words, step = " ".join(command.words), command.key.step
            _say(f"{command.name} of step {step} was NOT started: the system has no room for it ({why}): {words}")
            return
        self._running.append((command, process))

    def wait(self) -> None:
        """Wait until all commands have ended."""
        while self.is_busy:
            if self._running:
                self._running[0][1].wait()
            self.look()

    def close(self) -> None:
        """Start the commands that still wait, and report those that have failed. Commands that run are left alone."""
        while self._waiting:
            try:
                self.look()
            except OSError as error:  # the program is gone by now; the status of the run stays as it is
                _say(f"a command could not be started: {error}")
            if self._waiting and self._running:
                self._running[0][1].wait()
        self.look()
        for _, process in self._running:
            process.returncode = 0  # the command may outlive this program: Python shall not warn about it
        self._running.clear()


def _say(text: str) -> None:
    print(f"quests_md: {text}", file=sys.stderr, flush=True)


def _check_command(name: str, command: Any) -> None:
    is_list = isinstance(command, (list, tuple)) and command and all(isinstance(word, str) for word in command)
    if not is_list:
        raise InputError(f'{name} must be a function or a list of arguments such as ["sh", "label.sh"]: {command!r}')
    for word in command:
        try:
            word.format(**_FIELDS)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise InputError(f"{name}: {word!r}: the fields are {', '.join(f'{{{f}}}' for f in _FIELDS)}") from None
