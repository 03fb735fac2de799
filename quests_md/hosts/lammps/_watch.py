"""A watched LAMMPS: what its callbacks do, and how a failure on one rank ends the run on all of them.

Only an evaluation talks to the other ranks. An error of one rank alone waits until then, in `Watch._error`. Where no
evaluation may come any more, `Watch.take` ends the job.
"""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Callable
from typing import Any

from ...comm import raise_together
from ...config import RunConfig
from ...errors import Halted, HostError, MonitorError, QuestsError
from ...monitor import Decision
from ...recording import Session
from ..mpi import MpiComm
from ._arrays import FIX, FIX_ATOM, FIX_ERROR, FrameReader, Values
from ._library import Library
from ._pushing import Pushing
from ._replicas import Breaker, Ending, News, Replicas, find_ending, list_coupling_fixes

__all__ = ["Watch"]

_REPEATS = 64  # a command that comes back to the step of its end so often goes round for ever
# LAMMPS replaces variables in what it prints, and quotes would end the text.
_PRINTABLE = str.maketrans({"µ": "u", "$": "?", '"': "?", "&": "?"})


class Watch:
    """A watched LAMMPS. Made by `attach`.

    Attributes
    ----------
    session
        The watched run: its files, counts and status.
    failure
        What ended the watching, or None.
    """

    def __init__(
        self,
        library: Library,
        session: Session,
        reader: FrameReader,
        config: RunConfig,
        within_step: bool,
        replicas: Replicas | None = None,
        breaker: Breaker | None = None,
        pushing: Pushing | None = None,
    ) -> None:
        self.session = session
        self.failure: BaseException | None = None
        self._library = library
        self._reader = reader
        self._comm = session.monitor.comm
        self._every = session.monitor.every
        self._values = Values(library, self._comm, session.monitor.expects_errors)
        self._within_step = within_step  # evaluate in the callback of fix external, not in `evaluate_or_raise`
        self._warns = config.on_error == "warn"
        self._restart_file, self._restart_due = config.restart_file, False
        self._error: Exception | None = None  # an error of this rank that the other ranks do not know yet
        self._raised: BaseException | None = None  # the failure that the program has been told
        self._step = -1
        self._called = False  # whether LAMMPS has called since the last command ended; the same on all ranks
        self._interrupted = self._closed = self._freed = False
        self._pending = False  # whether a frame has been evaluated since the last flush
        self._is_new = True  # whether LAMMPS has set up since its ghost atoms were counted
        self._replicas = replicas
        self._breaker = breaker
        self._pushing = pushing
        self._ending = Ending.TIMEOUT  # how the command that is running can be ended
        self._halted_at = -1  # the step after which LAMMPS was told to end
        self._repeats = 0  # how often LAMMPS has come back to that step
        self._must_break = False  # whether the command must be ended by an error of LAMMPS
        self._exit_code = 0  # with which the job will end
        self._must_meet = False  # whether the other partitions must hear of a failure before it is raised
        if replicas is not None:
            replicas.join(self._comm)
            self.look_at_fixes()
        self._values.publish_nothing()

    @property
    def decision(self) -> Decision | None:
        """The last evaluated decision."""
        return self.session.decision

    @property
    def halted(self) -> bool:
        """Whether the run was told to stop (halt, SIGTERM, wall time). ``timer timeout off`` lets LAMMPS run again."""
        return self.session.status == "halted"

    @property
    def watching(self) -> bool:
        """Whether LAMMPS still has the fixes that `attach` defined: ``clear`` and ``unfix`` remove them."""
        return self._values.have_fixes

    # -- called by LAMMPS --------------------------------------------------------------------------------------------

    def on_forces(self, _: Any, step: int, n_local: int, ids: Any, x: Any, forces: int | None) -> None:
        """Do the work within a step, after its forces have been computed. This is the callback of fix external.

        It never raises, because C code cannot pass an exception on. Each exception becomes the watch's failure.
        """
        try:
            if step != self._step + 1 and (step != self._step or self._library.is_setting_up):
                self._is_new = True
            self._called, self._step = True, step
            if self._must_break or (not self._within_step and step == self._halted_at):
                self._break()
            try:
                if forces and (self._pushing is not None or step % self._every == 0):
                    self._library.set_to_zero(forces, n_local)
                if self.failure is None:
                    self._values.clear_new_atoms()
                if not self._within_step and self.session.due(step):
                    self._reader.note_box(step)
            except Exception as error:  # noqa: BLE001 - the other ranks must hear of any error
                self._remember(error)
            if self._pushing is not None:
                self._push(self._pushing, step, n_local, forces)
            if self._within_step:
                self.evaluate(step, end_of_step=False)
        except BaseException as error:  # noqa: BLE001 - an interrupt too: the run ends, and the command raises it
            self.take(error)
        if self._replicas is not None:
            try:
                self._meet(self._replicas)
            except BaseException as error:  # noqa: BLE001
                self.take(error)

    def _push(self, pushing: Pushing, step: int, n_local: int, forces: int | None) -> None:
        """Let the bias push the atoms, as long as the run is watched. Collective."""
        if self.failure is not None or self._must_break or self._exit_code or self._closed or self.session.given_up:
            pushing.stop()
            return
        try:
            pushing.push(step, n_local, forces)
        except QuestsError as failure:  # on all ranks
            pushing.stop()
            self._fail(failure)
            raise

    def evaluate_or_raise(self, end_of_step: bool) -> None:
        """Evaluate the present step for ``fix python/invoke``, and raise what has ended the watching."""
        try:
            self.evaluate(self._library.step, end_of_step)
        except BaseException as error:  # noqa: BLE001 - raised below
            self.take(error)
        if self.failure is not None and not self._must_meet and not self._exit_code:
            self._raised = self.failure
            raise self.failure
        if self._must_break and self._halted_at != self._library.step:
            raise Halted(f"{self.session.reason}. LAMMPS can end this command only by an error")

    def evaluate(self, step: int, end_of_step: bool) -> None:
        """Evaluate the present configuration, publish its dH to LAMMPS, and stop the run if asked to. Collective.

        Raises
        ------
        QuestsError
            Watching failed, on all ranks. dH is published as inf and the run is told to stop.
        """
        self._step = step
        if self.failure is not None:
            self._library.stop()  # the program has started another run
        elif self._must_break or self._exit_code:
            return  # the command is about to end
        elif not self._closed and self._is_due(step, end_of_step):
            if self.session.given_up:
                self._go_on_unwatched()
            else:
                self._evaluate(step, end_of_step)

    def _is_due(self, step: int, end_of_step: bool) -> bool:
        try:
            due = self.session.due(step)
        except Exception as error:  # noqa: BLE001 - the other ranks may evaluate this step, and hear of it there
            self._remember(error)
            due = step % self._every == 0
        return due and (end_of_step or not self._library.trying)

    def _evaluate(self, step: int, end_of_step: bool) -> None:
        if self._replicas is not None or self.session.status == "halted":
            self._ending = find_ending(self._library, self._replicas)
        if self.session.status == "halted" and self._is_held(step):
            return
        frame, error = None, self._error or self._listen()
        if error is None:
            try:
                self._check()
                frame = self._reader.read(step, end_of_step)
                if self._pushing is not None:
                    self._pushing.note(frame, end_of_step)
            except Exception as caught:  # noqa: BLE001 - the other ranks must hear of any error
                error = caught
        if self._is_new:
            self._is_new = False
            self._library.flush()  # the session will print what the thresholds mean
            missing = self._reader.count_ghosts(frame, self._comm)  # on all ranks, whatever has failed on this one
            error = error or missing
        try:
            if self.session.status == "halted":
                self.session.acknowledge()  # LAMMPS runs again: somebody has reset its timer
                if self._replicas is not None:
                    self._replicas.forget()
            decision = self.session.observe(frame, step=step, error=error)
        except QuestsError as failure:  # on all ranks
            self._fail(failure)
            raise
        if self.session.given_up:
            self._error = None  # all ranks know it now
            self._say(f"WATCHING FAILED, and the run goes on without it: {self.session.reason}")
            self._go_on_unwatched()
            return
        self._pending = True
        if decision.stop:
            self._restart_due = True
            self._end_command()
        try:
            if decision.evaluated:  # else a live reference has learned from the frame
                self._values.publish(decision, self.session.n_saved)
            if decision.stop:
                self._say(f"halted at step {step}: {'; '.join(decision.reasons)}")
        except Exception as caught:  # noqa: BLE001 - of this rank alone
            error = HostError(f"dH cannot be published to LAMMPS: {caught}")
            error.__cause__ = caught
            self._remember(error)

    def _check(self) -> None:
        if self._interrupted:
            raise HostError("interrupted")
        if not self._values.have_fixes:
            raise HostError(f"fix {FIX} or {FIX_ATOM} is gone: after `clear` or `unfix`, attach again")

    # -- what fails --------------------------------------------------------------------------------------------------

    def _remember(self, error: Exception) -> None:
        """Keep the first error of this rank alone, until all ranks hear of it."""
        if self._error is not None:
            return
        self._error = error
        if self._closed:  # the other ranks do not hear of it: the next command of this rank raises it
            self.failure = self.failure or error
        if self._closed or self.session.given_up:
            _show(error)

    def _fail(self, failure: BaseException) -> None:
        """End the watching: stop LAMMPS, and publish inf."""
        self.failure = failure
        try:
            self._end_command()
        except BaseException as error:  # noqa: BLE001 - the other ranks stop, and this one does not
            _show(error)
            self._leave(error)
        self._try(self._publish_failure)
        self._try(lambda: self._say(f"watching failed: {failure}"))

    def _try(self, act: Callable[[], object]) -> None:
        """Call a function, and only print what it raises: the program will be told the failure that came first."""
        try:
            act()
        except BaseException as error:  # noqa: BLE001
            _show(error)

    def take(self, error: BaseException) -> None:
        """Make an error of this rank the failure, and end the job: nobody knows what the other ranks are doing."""
        if error is self.failure:
            return
        if self.failure is not None or self._comm.size > 1:
            _show(error)
        if self.failure is None:
            self._try(lambda: self.session.fail(error))
            self._fail(error)
        if self._replicas is not None and self._comm.size > 1:
            self._try(self._tell)
        self._leave(error)

    def _leave(self, error: BaseException) -> None:
        """End the job, if it has several ranks."""
        if isinstance(self._comm, MpiComm) and not self._freed:
            self._comm.leave(type(error).__name__)
            self._comm.abort(type(error).__name__)  # though all ranks leave: they may be at different points

    def _agree(self) -> Exception | None:
        """Share with all ranks what no evaluation has shared; return the failure, if there is one. Collective."""
        if self.failure is not None or self.session.given_up:
            return None
        error, self._error = self._error, None
        try:
            raise_together(self._comm, error)
        except Exception as failure:  # noqa: BLE001 - the error of this rank, or what another one says
            self._try(self.session.flush)
            self.session.fail(failure)
            return failure
        return None

    def _go_on_unwatched(self) -> None:
        """Publish inf for a run that is no longer watched. End the run if it was interrupted: nothing else will."""
        self._publish_failure()
        if self._interrupted:
            if self._comm.size > 1:  # no evaluation will tell the other ranks of it
                raise KeyboardInterrupt
            self._library.stop()

    # -- how a command ends before its time --------------------------------------------------------------------------

    def look_at_fixes(self) -> None:
        """Look whether fixes couple the partitions. Collective, outside of a run."""
        if self._replicas is not None:
            self._replicas.coupled = bool(self._comm.broadcast(list_coupling_fixes(self._library, self._comm)))

    def _end_command(self) -> None:
        """Let the command that is running end, because the session has halted or failed.

        A job that will end goes on until then, so that other partitions come to their next evaluation.
        """
        self._ending = ending = find_ending(self._library, self._replicas)
        self._halted_at, self._repeats = self._step, 0
        raises = not self._within_step  # in an input script `evaluate_or_raise` raises, and LAMMPS ends with an error
        if ending is Ending.TOGETHER:
            self._must_meet = True  # and then all stop
        elif ending is Ending.JOB:
            self._end_job()
        elif not (raises and (self.failure is not None or ending is Ending.ERROR or ending is Ending.RERUN)):
            self._library.stop()
        if ending is Ending.ERROR or ending is Ending.RERUN:
            self._must_break = self.failure is None or not raises
        elif ending is Ending.SWAP:
            self._tell()

    def _tell(self) -> None:
        """Tell the other partitions how this one has ended."""
        if self._replicas is not None:
            self._replicas.tell(self._news())

    def _news(self) -> News:
        if self.failure is not None:
            return News("failed", str(self.failure))
        return News("halted", self.session.reason) if self.halted and not self._closed else News()

    def _listen(self) -> Exception | None:
        """Look whether another partition has ended; return an error if it has failed. If it has halted, halt."""
        replicas = self._replicas
        if replicas is None or self._ending not in (Ending.SWAP, Ending.JOB):
            return None
        replicas.listen()
        if replicas.news is not None and replicas.news.state == "failed":
            return MonitorError(replicas.news.reason)
        if replicas.news is not None and self.session.status == "running":
            self.session.monitor.request_stop(replicas.news.reason)
        return None

    def _meet(self, replicas: Replicas) -> None:
        """End together with the other partitions, if LAMMPS takes every step of all of them together."""
        if self._exit_code:
            replicas.end_if_written(self._exit_code, self.session.reason)
            return
        self._ending = find_ending(self._library, replicas)
        if self._ending in (Ending.TOGETHER, Ending.SWAP, Ending.JOB):
            replicas.announce()
        if self._ending is not Ending.TOGETHER:
            return
        mine = self._news()
        news = replicas.meet(mine)
        self._must_meet = False
        if news is not None:
            self._follow(news)
        elif mine.state != "running":
            self._end_command()

    def _follow(self, news: News | None) -> None:
        """End as one of the partitions has ended, if one has."""
        if news is None or news.state == "running":
            return
        self._halted_at, self._repeats = self._step, 0
        if self._within_step or self.failure is None:  # else `evaluate_or_raise` raises
            self._library.stop()
        if not self._closed and self._take_over(news):
            self._say(f"ends after step {self._step}: {news.reason}")
            if self.failure is not None:
                self._try(self._publish_failure)

    def _take_over(self, news: News) -> bool:
        """Let the session end as another partition has ended; return whether it was still running."""
        if self.failure is not None or self.session.status != "running":
            return False
        if news.state == "failed":
            self.failure = MonitorError(f"watching failed in {news.reason}")
            self.session.fail(self.failure)
        else:
            self.session.halt(news.reason)
            self._restart_due = True
        return True

    def _follow_late(self) -> None:
        """End as another partition has ended, after a command in which this one has not heard of it. Collective."""
        if self._replicas is not None and self._ending in (Ending.SWAP, Ending.JOB):
            self._replicas.listen()
            news = self._comm.broadcast(self._replicas.news)
            if news is not None:  # nothing is told to LAMMPS here: it may be gone
                self._take_over(news)
        self._ending = Ending.TIMEOUT

    def _end_job(self) -> None:
        """End the job, when the other partitions have written their files, or have had the time to do so."""
        if self._replicas is None or self._exit_code:
            return
        self._exit_code = 3 if self.failure is None else 1
        self._replicas.announce()
        self._tell()
        self._try(self.session.close)
        self._replicas.end_soon()

    def _is_held(self, step: int) -> bool:
        """Return whether LAMMPS only sets up the next part of a command that has been told to end.

        Most commands look at the timeout before they set up. Of the others, it is told by steps that do not go on.
        """
        if self._ending is Ending.TIMEOUT or self._ending is Ending.RERUN or step != self._halted_at:
            return False
        self._repeats += 1
        if self._repeats > _REPEATS and self._ending is Ending.ERROR:
            self._must_break = True
        elif self._repeats > _REPEATS and self._ending is Ending.JOB:
            self._end_job()
        return True

    def _break(self) -> None:
        """End the command by an error of LAMMPS, as soon as this callback has returned."""
        if self._breaker is not None and self._breaker.ready:
            self._breaker.trigger()
            return
        if not self._within_step:  # `evaluate_or_raise` raises, if the command goes on
            self._repeats += 1
            if self._repeats < _REPEATS or find_ending(self._library, self._replicas) is not Ending.ERROR:
                return
        self._try(self.session.close)
        print(f"quests_md: the program ends, for LAMMPS cannot end this command: {self.session.reason}", flush=True)
        self._library.flush()
        if isinstance(self._comm, MpiComm):
            self._comm.abort(self.session.reason)
        os._exit(3 if self.failure is None else 1)

    def has_broken(self) -> bool:
        """Return whether the command that has just failed did so because it had to be ended; then it is forgotten."""
        broken, self._must_break = self._must_break, False
        if broken and self._breaker is not None:
            self._breaker.reset()
        return broken

    # -- called by the program ---------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Let watching fail at the next evaluation, so that the run ends there on all ranks."""
        self._interrupted = True

    def raise_failure(self) -> None:
        """Raise what ended the watching, once."""
        if self.failure is not None and self.failure is not self._raised:
            self._raised = self.failure
            raise self.failure

    def after_command(self) -> None:
        """Raise what ended the watching, once. Write the last frame of the run that has ended. Collective."""
        self.has_broken()
        self._follow_late()
        self.raise_failure()
        try:
            if self._pending and not self._exit_code and self.session.status in ("running", "halted"):
                self.session.flush()
                self._do_alone(self.log)
            self._pending = False
            if self._restart_due and self._restart_file is not None and self.watching:
                self._do_alone(lambda: self._library.command(f"write_restart {self._restart_file}"))
            self._restart_due = False
            # With on_error = "warn", the next evaluation or `close` tells the other ranks.
            if self._called and not self._closed and not self._warns:
                self._called = False
                failure = self._agree()
                if failure is not None:
                    self._fail(failure)
                    raise failure
        except BaseException as error:
            if not isinstance(error, QuestsError):
                self.take(error)
            elif error is not self.failure and self.session.status == "failed":
                self._fail(error)
            self._raised = error
            raise

    def _do_alone(self, act: Callable[[], object]) -> None:
        """Call a function that does not wait for other ranks.

        If LAMMPS refuses a command, it does so on all ranks, and this raises the error. Any other error belongs to this
        rank alone: it is kept until the other ranks can hear of it.
        """
        try:
            act()
        except HostError:
            raise
        except Exception as error:  # noqa: BLE001
            self._remember(error)

    def close(self, error: BaseException | None = None) -> None:
        """Write what is left and print the summary. A second call does nothing. Collective.

        Later runs are not watched. If an `error` is about to end the program, the session has failed, and this does
        not wait for the other ranks: they may not come.

        Raises
        ------
        QuestsError
            Something cannot be written. Also what ended the watching, if no command has raised it.
        """
        if self._closed:
            return
        atexit.unregister(self.end_with_program)
        self._closed = True
        self._library.flush()  # the session will print its summary
        if error is not None:
            self.session.fail(error)
            return
        self._follow_late()
        if self._replicas is not None:
            self._replicas.settle()
        if self.failure is None:
            self.failure = failure = self._agree()
            if failure is not None and self._warns:
                self._raised = failure
                _show(failure)
        self.session.close()
        if not self._interrupted:  # else the program knows it
            self.raise_failure()
        if isinstance(self._comm, MpiComm):
            self._comm.free()
            self._freed = True

    def end_with_program(self) -> None:
        """Close when the program ends. If watching failed and nobody was told, end with an error. Collective."""
        try:
            self.close()
        except BaseException as error:  # noqa: BLE001 - Python would print it and end without an error
            _show(error)
            if isinstance(self._comm, MpiComm):
                self._comm.leave(type(error).__name__)  # when a rank ends, the launcher ends the others
            self._library.flush()
            os._exit(1)

    def detach(self) -> None:
        """Close, and remove the fixes, so that this LAMMPS can be watched again. Collective, outside of a run."""
        self.close()
        if self._replicas is not None:
            self._replicas.leave()
        if self._breaker is not None:
            self._breaker.close()
        for name in (FIX, FIX_ATOM, FIX_ERROR):
            if self._library.has_fix(name.encode()):
                self._library.command(f"unfix {name}")
        self._library.command(f"group {FIX_ATOM} delete")

    def log(self) -> None:
        """Write what watching cost to LAMMPS's log. Collective, outside of a run."""
        # LAMMPS takes nothing but ASCII.
        text = self.session.summary().translate(_PRINTABLE).encode("ascii", "replace").decode()
        self._library.command(f'print "{text}" screen no')

    def _say(self, text: str) -> None:
        if self._comm.rank == 0:
            self._library.say(f"quests_md: {text}")

    def _publish_failure(self) -> None:
        if self.watching:
            self._values.publish_failure(self._step, self.session.n_saved)


def _show(error: BaseException) -> None:
    """Print an error that nobody would see otherwise."""
    traceback.print_exception(type(error), error, error.__traceback__)
