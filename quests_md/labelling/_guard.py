"""Started as a program: the guard of a process that calculates, which it forks. It imports nothing that takes time.

With arguments these are a program, such as one that trains or explores, which the forked process becomes.

An electronic-structure code may crash its process, start others, or hang in a loop that hears no signal. So whoever
wants labels starts this guard as the leader of a process group. When the calculating process ends, the guard ends in
the same way, for its parent to see. When the parent ends, however that happens, the pipe to it breaks, and the
guard kills the whole group: no calculation outlives the program that wanted it. Signals by which others ask the guard
for something are handed on: it does not leave before the process that it watches.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
if sys.path[0] == _HERE:
    sys.path[0] = os.getcwd()  # as `python -m`; this folder has a _queue.py, which Python would take for its own
sys.path.append(os.path.dirname(os.path.dirname(_HERE)))  # where the package is, if it is not installed

import resource  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402

__all__ = ["main"]

_LOOK = 500  # ms between looks at whether the parent is there: what it has forked may hold the pipe open
_HANDED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_CANNOT_START = 127  # the exit code that shells have for it


def main() -> None:
    """Fork the process that calculates, and watch it, the parent and the pipe on descriptor 0."""
    parent = os.getppid()
    # The system tells of its end, and no pipe that breaks: what the process itself has forked would hold that open.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in _HANDED_ON}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in (signal.SIGCHLD, *before):
        signal.signal(number, lambda number, frame: None)  # the pipe has its number
    worker = os.fork()
    if worker == 0:
        for number, handler in {**before, signal.SIGCHLD: signal.SIG_DFL}.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(told)
        os.close(tell)
        if sys.argv[1:]:
            _become(sys.argv[1:])
        from quests_md.labelling._child import serve

        serve()
        os._exit(0)
    os.dup2(2, 1)  # only the calculating process may hold the way back
    _end_as(_watch(worker, parent, told))


def _watch(worker: int, parent: int, told: int) -> int:
    """Return the status that the process ended with; where the parent ends first, kill the group, and this with it."""
    poll = select.poll()
    poll.register(0, 0)
    poll.register(told, select.POLLIN)
    while True:
        ready = dict(poll.poll(_LOOK))
        if 0 in ready or os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        if told not in ready:
            continue
        for number in os.read(told, 1 << 10):
            if number != signal.SIGCHLD:
                os.kill(worker, number)
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            return status


def _end_as(status: int) -> None:
    """End as the process did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # that of the calculation is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _become(command: list[str]) -> None:
    """Go on as a program, which reads from nowhere: its end is that of this process."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and no program shall inherit that
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: cannot be started: {error.strerror}\n".encode(errors="surrogateescape"))
        os._exit(_CANNOT_START)


if __name__ == "__main__":
    main()
