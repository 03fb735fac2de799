"""Started as a program: the guard of a process that calculates, which it forks. It imports nothing that takes time.

With arguments these are a program, such as one that trains, which is run instead.

An electronic-structure code may crash its process, start others, or hang in a loop that hears no signal. So whoever
wants labels starts this guard as the leader of a process group. When the calculating process ends, the guard ends in
the same way, for its parent to see. When the parent ends, however that happens, the pipe to it breaks, and the
guard kills the whole group: no calculation outlives the program that wanted it.
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


def main() -> None:
    """Fork the process that calculates, and watch it and the pipe on descriptor 0."""
    # The system tells of its end, and no pipe that breaks: what the process itself has forked would hold that open.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(told)
        os.close(tell)
        if sys.argv[1:]:
            _run(sys.argv[1:])
        from quests_md.oracle._child import serve

        serve()
        os._exit(0)
    os.dup2(2, 1)  # only the calculating process may hold the way back
    poll = select.poll()
    poll.register(0, 0)
    poll.register(told, select.POLLIN)
    ended = 0
    while not ended:
        if 0 in dict(poll.poll()):
            os.killpg(0, signal.SIGKILL)
        os.read(told, 1)
        ended, status = os.waitpid(worker, os.WNOHANG)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # that of the calculation is enough
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _run(command: list[str]) -> None:
    """Run a program, and end as it ends."""
    import subprocess

    code = subprocess.call(command, stdin=subprocess.DEVNULL)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
