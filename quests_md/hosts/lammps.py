"""LAMMPS as host: ``attach`` for a Python-driven LAMMPS, three functions for input scripts.

In an input script of a LAMMPS with the PYTHON package::

    python quests_attach input 2 SELF quests.toml format ps here "from quests_md.hosts.lammps import *"
    python quests_attach invoke
    fix watch all python/invoke 10 end_of_step quests_step
    run 100000
    python quests_close input 1 SELF format p exists
    python quests_close invoke

(The last two lines may be left out: the watch is closed when the program ends; they say in log.lammps what it cost.)
Either way LAMMPS itself then sees, per atom, ``d_dH`` (nats, of the last evaluation; 0 before it and for atoms that
are not watched; with ``values = "flagged"`` an upper bound for most atoms that are not above `select`) and the global
values ``f_quests[1]`` ... ``f_quests[6]``: maximum and mean of dH, number of atoms above `select` and above `halt`,
step of the last evaluation (−1 before it), frames saved.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..comm import Comm, Serial, raise_together
from ..config import RunConfig
from ..errors import HostError, InputError, QuestsError
from ..index import Index, Live
from ..monitor import Decision
from ..recording import HOOKS, Session, reference_of
from ._lammps_frame import FrameReader
from ._lammps_library import Library, address_of
from ._lammps_module import callback_of, make_watched, watch_of
from .mpi import MpiComm

__all__ = ["Watch", "attach", "quests_attach", "quests_close", "quests_step"]

_FIX = "quests"  # global values: f_quests[1..6]
_FIX_ATOM = "quests_dH"  # carries d_dH along with the atoms, and i_quests: the id of the atom that it is of
_ENTRIES = 6
_MODULE = "lammps module"  # the host that is driven from Python
_WRITEDATA = 20230802  # the version from which on fix property/atom is known to have that keyword
# The watches of input scripts by the address of their LAMMPS, which is all that quests_step is told.
_watches: dict[int, Watch] = {}


class Watch:
    """A watched LAMMPS. Made by `attach`.

    Attributes
    ----------
    session
        The watched run: its files, counts and status.
    failure
        What ended the watching, or None.
    """

    def __init__(self, library: Library, session: Session, reader: FrameReader, restart_file: str | None) -> None:
        self.session = session
        self.failure: BaseException | None = None
        self._library = library
        self._reader = reader
        self._comm = session.monitor.comm
        self._raised = False
        self._interrupted = self._closed = False
        self._pending = False  # evaluated since the last flush
        self._restart_file, self._restart_due = restart_file, False

    @property
    def decision(self) -> Decision | None:
        """The last evaluated decision."""
        return self.session.decision

    @property
    def halted(self) -> bool:
        """Whether a frame above the halt threshold ended the run. ``timer timeout off`` lets LAMMPS run again."""
        return self.session.status == "halted"

    @property
    def watching(self) -> bool:
        """Whether LAMMPS still has the fixes that `attach` defined: ``clear`` and ``unfix`` remove them."""
        return all(self._library.has_id("fix", fix) for fix in (_FIX, _FIX_ATOM))

    def close(self, error: BaseException | None = None) -> None:
        """Write what is left and print the summary; a second call does nothing. Collective.

        Later runs are not watched. With an `error` that is about to end the program the session has failed, and
        nothing is collective: the other ranks may not be here.
        """
        atexit.unregister(self.close)
        self._closed = True
        if error is not None:
            self.session.fail(error)
            return
        self.session.close()
        if isinstance(self._comm, MpiComm):
            self._comm.free()

    def detach(self) -> None:
        """Close, and remove the fixes, so that this LAMMPS can be watched anew. Collective, outside of a run."""
        self.close()
        for fix in (_FIX, _FIX_ATOM):
            if self._library.has_id("fix", fix):
                self._library.command(f"unfix {fix}")

    def interrupt(self) -> None:
        """Let watching fail at the next evaluation, and the run end there with all its ranks."""
        self._interrupted = True

    def evaluate(self, step: int, end_of_step: bool) -> None:
        """Evaluate the present configuration and publish it to LAMMPS; stop the run where asked. Collective.

        Raises
        ------
        QuestsError
            Watching failed, on all ranks; dH is published as inf and the run is told to stop.
        """
        if self.failure is not None:
            self._library.stop()
            return
        if self._closed or not self.session.due(step) or (not end_of_step and self._library.trying):
            return
        if self.session.given_up:
            self._publish_failure(step)
            self._end_unwatched()
            return
        try:
            self._evaluate(step, end_of_step)
        except BaseException as failure:
            if not isinstance(failure, QuestsError):
                self._leave(failure)
            self.failure = failure
            self._say(f"watching failed: {failure}")
            self._library.stop()
            self._publish_failure(step)
            raise

    def _evaluate(self, step: int, end_of_step: bool) -> None:
        frame, error = None, None
        try:
            self._check()
            frame = self._reader.read(step, end_of_step)
        except Exception as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
            error = caught
        if self.session.status == "halted":
            self.session.acknowledge()  # LAMMPS runs again, so somebody has reset its timer
        decision = self.session.observe(frame, step=step, error=error)
        if self.session.given_up:
            self._say(f"WATCHING FAILED, and the run goes on without it: {self.session.reason}")
            self._publish_failure(step)
            self._end_unwatched()
            return
        try:
            if decision.evaluated:  # else a live reference has taken it
                self._publish(decision)
        except Exception as caught:
            # Of this rank alone: no QuestsError, which all ranks raise together.
            raise RuntimeError(f"dH cannot be published to LAMMPS: {caught}") from caught
        self._pending = True
        if decision.stop:
            self._say(f"halted at step {step}: {'; '.join(decision.reasons)}")
            self._restart_due = True
            self._library.stop()

    def _say(self, text: str) -> None:
        if self._comm.rank == 0:
            self._library.say(f"quests_md: {text}")

    def _end_unwatched(self) -> None:
        """End a run that is not watched any more, if it was interrupted: no evaluation will tell the other ranks."""
        if self._interrupted:
            if self._comm.size > 1:
                self._leave(KeyboardInterrupt())
            self._library.stop()

    def clear_new_atoms(self) -> None:
        """Set d_dH of atoms that were made since the last evaluation to 0.

        LAMMPS leaves them what their place in memory held: the dH of an atom that has been there before.
        """
        library = self._library
        if self.failure is not None or not library.has_array("i_quests"):
            return
        n = library.setting("nlocal")
        new = library.vector("i_quests", n, np.int32) != library.vector("id", n).astype(np.int32, copy=False)
        if new.any():
            library.vector("d_dH", n)[new] = 0.0

    def note_step(self, step: int) -> None:
        """Do what has to be done within a step whose end will be evaluated, or not."""
        self.clear_new_atoms()
        if self.session.due(step):
            self._reader.note_box(step)

    def _check(self) -> None:
        if self._interrupted:
            raise HostError("interrupted")
        if not self.watching:
            raise HostError(f"fix {_FIX} or {_FIX_ATOM} is gone: after `clear` or `unfix`, attach again")

    def _leave(self, error: BaseException) -> None:
        """End the session, and a job of several ranks, for an error of this rank alone at a point nobody foresaw."""
        self.session.fail(error)
        if isinstance(self._comm, MpiComm):
            traceback.print_exception(type(error), error, error.__traceback__)
            self._comm.leave(type(error).__name__)
            self._comm.abort(type(error).__name__)  # even together: the ranks may be at different points

    def after_command(self) -> None:
        """Raise what ended the watching, once; write the last frame of a run that has ended. Collective."""
        if self.failure is not None and not self._raised:
            self._raised = True
            raise self.failure
        if self._pending and self.session.status in ("running", "halted"):
            self._pending = False
            self.session.flush()
            self._log()
        if self._restart_due:
            self._restart_due = False
            if self._restart_file is not None and self.watching:
                self._library.command(f"write_restart {self._restart_file}")

    def _log(self) -> None:
        """Write what watching cost to LAMMPS's log. Collective, outside of a run."""
        text = self.session.summary().replace("µ", "u")
        # LAMMPS replaces variables in what it prints, and takes nothing but ASCII.
        text = "".join(c if c.isascii() and c not in '$"&' else "?" for c in text)
        self._library.command(f'print "{text}" screen no')

    def _publish(self, decision: Decision) -> None:
        """Write dH to d_dH and the global values to the fix: what LAMMPS sees at this very step."""
        self._set_dH(decision.dH)
        mean = 0.0 if np.isnan(decision.mean) else decision.mean  # there are no atoms to take it from
        values = (decision.maximum, mean, decision.n_select, decision.n_halt, decision.step, self.session.n_saved)
        self._set_values(values)

    def _publish_failure(self, step: int) -> None:
        # inf, never nan: `fix halt` acts on inf and is blind to nan.
        if self.watching:
            self._set_dH(np.inf)
            self._set_values((np.inf, np.inf, 0, 0, step, self.session.n_saved))

    def _set_dH(self, dH: NDArray[np.float64] | float) -> None:
        n = self._library.setting("nlocal")
        target = self._library.vector("d_dH", n)
        target[:] = dH
        target[np.isnan(target)] = 0.0
        self._library.vector("i_quests", n, np.int32)[:] = self._library.vector("id", n)

    def _set_values(self, values: Sequence[float]) -> None:
        for i, value in enumerate(values, start=1):
            self._library.set_vector(_FIX, i, float(value))


def attach(
    lmp: Any,
    index: Index | RunConfig | str | os.PathLike[str] | None = None,
    **keys: Any,
) -> Watch:
    """Watch a Python-driven LAMMPS. Collective: all ranks call it, after the atoms are there and before the run.

    From then on every ``run``, ``minimize`` and ``rerun`` is watched at the steps that are multiples of `every`, the
    first one included. When watching fails, the command that was running raises; when a frame lies above `halt`, the
    run ends after that step and later ones do nothing until ``timer timeout off``.

    Parameters
    ----------
    lmp
        An instance of the ``lammps`` module.
    index
        An `Index`, the path of one, or a `RunConfig` or the path of a quests.toml (".toml"). Keywords that are given
        replace those of the configuration. None with ``reference="live"``.
    **keys
        Any key of `RunConfig`, one for one: ``elements=["Si"], select=5.0, halt=20.0, every=10``. `on_select`,
        `on_halt` and `on_event` may be functions here, as in `Session`.

    Returns
    -------
    Watch
        Has the session, the last decision, and `close`.

    Raises
    ------
    HostError
        LAMMPS cannot be watched as it is set up: no box, KOKKOS, units, ghost cutoff (the message says what
        ``comm_modify cutoff`` to set), masses that do not fit the elements.
    ConfigError, ElementError, IndexFileError, OutputError
        From the configuration, the elements, the index and the output folder. All errors are raised on all ranks.
    """
    hooks = {name: keys.pop(name) for name in list(keys) if callable(keys[name])}
    keys = {name: os.fspath(key) if isinstance(key, os.PathLike) else key for name, key in keys.items()}
    library = Library.of_module(lmp)
    earlier = watch_of(lmp)
    if earlier is not None and not earlier.watching:  # the script went on to another system, after `clear`
        earlier.close()
    watch = _attach(library, index, keys, hooks, host=_MODULE)
    library.set_callback(_FIX, callback_of(watch), watch.session.monitor.every)
    make_watched(lmp, watch)
    return watch


def quests_attach(capsule: Any, config: str) -> None:
    """Watch the LAMMPS that runs an input script; for the command ``python ... invoke``.

    Parameters
    ----------
    capsule
        What LAMMPS passes for ``SELF``.
    config
        Path of a quests.toml.
    """
    address = address_of(capsule)
    if address in _watches:  # the script went on to another system, after `clear`
        _watches.pop(address).close()
    library = Library(None, address)
    watch = _watches[address] = _attach(library, config, {}, {}, host="lammps input script")
    # fix external holds the global values here; it evaluates nothing, for fix python/invoke does.
    library.set_callback(_FIX, watch.note_step, watch.session.monitor.every)
    atexit.register(watch.close)


def quests_step(capsule: Any, vflag: int | None = None) -> None:
    """Evaluate the present step; for ``fix python/invoke N end_of_step`` (or ``post_force``).

    A failure is raised on all ranks at the same step, so LAMMPS ends with an error on all of them.
    """
    watch = _watches.get(address_of(capsule))
    if watch is None:
        raise HostError("quests_attach was not invoked before the run")
    watch.evaluate(watch._library.step, end_of_step=vflag is None)


def quests_close(capsule: Any) -> None:
    """End the watching, and say in LAMMPS's log what it cost; for ``python ... invoke``, after the last run."""
    watch = _watches.pop(address_of(capsule), None)
    if watch is None:
        raise HostError("quests_attach was not invoked before")
    watch.close()
    watch._log()


def _attach(library: Library, index: Any, given: dict[str, Any], hooks: dict[str, Any], host: str) -> Watch:
    """Make a watch, or raise on all ranks."""
    if library.setting("box_exist") == 0:
        raise HostError("there is no simulation box yet: attach after the atoms are there")
    for fix in (_FIX, _FIX_ATOM):
        if library.has_id("fix", fix):
            raise HostError(f"there is a fix {fix} already: this LAMMPS is watched, or unfix it first")
    comm = _comm_of(library)
    config, reference, reader, error = None, None, None, None
    try:
        unknown = set(hooks) - set(HOOKS)
        if unknown:
            raise InputError(f"{min(unknown)} is a function, which only {', '.join(HOOKS)} may be")
        config, reference = _resolve(index, given)
        if config.restart_file is not None and host != _MODULE:
            raise InputError("restart_file is for LAMMPS driven from Python: put `write_restart` after the run")
        reader = FrameReader(library, config, reference)
    except (QuestsError, OSError) as caught:
        error = caught
    raise_together(comm, error)
    assert config is not None
    assert reader is not None
    reader.prepare(comm)
    session = Session.from_config(config, comm, reference, host, **hooks)
    with contextlib.ExitStack() as failing:
        failing.push(session)
        _define_fixes(library, config.every)
        failing.pop_all()
    watch = Watch(library, session, reader, config.restart_file)
    watch._set_values((0.0, 0.0, 0.0, 0.0, -1.0, 0.0))  # LAMMPS leaves them as the memory was
    watch._set_dH(0.0)  # it is not so after read_restart
    return watch


def _define_fixes(library: Library, every: int) -> None:
    # Else write_data adds a section that read_data refuses; older versions have `write_data ... nofix`.
    keep_out = " writedata no" if library.version >= _WRITEDATA else ""
    library.command(f"fix {_FIX_ATOM} all property/atom d_dH i_quests{keep_out}")
    # Called at every step, for the atoms that are made on the way. It adds forces, all zero, where they have been set.
    library.command(f"fix {_FIX} all external pf/callback 1 {every}")
    # It adds neither energy nor virial, but some versions count its virial before they have set it to zero.
    library.command(f"fix_modify {_FIX} energy no virial no")
    library.set_vector_length(_FIX, _ENTRIES)


def _resolve(index: Any, given: dict[str, Any]) -> tuple[RunConfig, Index | Live]:
    """Return configuration and reference of what `attach` was given."""
    if index is None:
        config = RunConfig.make(given)
    elif isinstance(index, RunConfig):
        config = RunConfig.make({**index.model_dump(exclude_unset=True), **given})
    elif isinstance(index, Index):
        config = RunConfig.make({"index": str(index.path), **given})
        return config, index
    elif os.fspath(index).endswith(".toml"):
        config = RunConfig.read(index)
        config = RunConfig.make({**config.model_dump(exclude_unset=True), **given}, where=str(index))
    else:
        config = RunConfig.make({"index": os.fspath(index), **given})
    return config, reference_of(config)


def _comm_of(library: Library) -> Comm:
    size = library.setting("world_size")
    if size <= 1:
        return Serial()
    comm = MpiComm(library.fortran_comm)
    if comm.size != size:
        raise HostError(
            f"LAMMPS runs on {size} ranks and mpi4py sees {comm.size}: they use different MPI libraries; "
            "start LAMMPS with the mpiexec of its own MPI"
        )
    return comm
