"""The guard of a process, started as a program by its path. It imports nothing that takes time.

It forks a process: the one that calculates; or, if it has arguments, the program with this command line, such as one
that trains or explores. The guard leads a process group of its own.

An electronic-structure code may crash its process, start others, or hang and hear no signal. When the forked process
ends, the guard ends in the same way, so that its parent sees how. When the parent ends, in whatever way, the pipe to it
breaks, and the guard kills the whole group: no calculation outlives the program that wanted it. The guard hands on
signals, and does not end before the process that it watches.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
if sys.path[0] == _HERE:
    sys.path[0] = os.getcwd()  # as with `python -m`; else Python would import the _queue.py of this folder as its own
sys.path.append(os.path.dirname(os.path.dirname(_HERE)))  # where the package is, if it is not installed

import resource  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402

__all__ = ["main"]

_LOOK = 500  # ms between two looks whether the parent lives: processes that it has forked may hold the pipe open
_HANDED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_CANNOT_START = 127  # the exit code of shells for this


def main() -> None:
    """Fork the process; watch it, the parent, and the pipe on descriptor 0."""
    parent = os.getppid()
    # SIGCHLD tells when the worker ends. A pipe would not tell it: processes that the worker forks hold the pipe open.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in _HANDED_ON}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in (signal.SIGCHLD, *before):
        signal.signal(number, lambda number, frame: None)  # its number comes through the pipe
    worker = os.fork()
    if worker == 0:
        for number, handler in {**before, signal.SIGCHLD: signal.SIG_DFL}.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)
        if sys.argv[1:]:
            _become(sys.argv[1:])
        from quests_md.labelling._child import serve

        serve()
        os._exit(0)
    os.dup2(2, 1)  # only the process that calculates may hold the pipe for answers
    _end_as(_watch(worker, parent, reading))


def _watch(worker: int, parent: int, reading: int) -> int:
    """Return the status with which the process ended. If the parent ends first, kill the group, the guard included."""
    poll = select.poll()
    poll.register(0, 0)
    poll.register(reading, select.POLLIN)
    while True:
        ready = dict(poll.poll(_LOOK))
        if 0 in ready or os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        if reading not in ready:
            continue
        for number in os.read(reading, 1 << 10):
            if number != signal.SIGCHLD:
                os.kill(worker, number)
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return status


def _end_as(status: int) -> None:
    """End in the same way as the process did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core file of the process is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _become(command: list[str]) -> None:
    """Become a program, which reads from an empty file."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them; the program must not inherit that
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: cannot be started: {error.strerror}\n".encode(errors="surrogateescape"))
        os._exit(_CANNOT_START)


if __name__ == "__main__":
    main()
