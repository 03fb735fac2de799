"""LAMMPS as host: ``attach`` for a Python-driven LAMMPS, two functions for input scripts.

In an input script of a LAMMPS with the PYTHON package::

    python quests_attach input 2 SELF quests.toml format ps here "from quests_md.hosts.lammps import *"
    python quests_attach invoke
    fix watch all python/invoke 10 end_of_step quests_step

Either way LAMMPS itself then sees, per atom, ``d_dH`` (nats, of the last evaluation; 0 before it and for atoms that
are not watched) and the global values ``f_quests[1]`` ... ``f_quests[6]``: maximum and mean of dH, number of atoms
above `select` and above `halt`, step of the last evaluation (−1 before it), frames saved.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..comm import Comm, Serial, raise_together
from ..config import RunConfig
from ..errors import HostError, QuestsError
from ..index import Index
from ..monitor import Decision
from ..session import Session
from ._lammps_frame import FrameReader
from ._lammps_library import Library
from .mpi import MpiComm

__all__ = ["Watch", "attach", "quests_attach", "quests_step"]

_FIX = "quests"  # global values: f_quests[1..6]
_FIX_ATOM = "quests_dH"  # carries d_dH along with the atoms
_ENTRIES = 6
_ATTRIBUTE = "_quests_md_watch"  # of an instance of the lammps module: its last watch

# The last watch of an input script: LAMMPS calls quests_step by name and hands it nothing but itself.
_watch: Watch | None = None


class Watch:
    """A watched LAMMPS. Made by `attach`.

    Attributes
    ----------
    session
        The watched run: its files, counts and status.
    failure
        What ended the watching, or None.
    """

    def __init__(self, library: Library, session: Session, reader: FrameReader) -> None:
        self.session = session
        self.failure: QuestsError | None = None
        self._library = library
        self._reader = reader
        self._raised = False
        self._late: Exception | None = None  # a failure of this rank alone; all ranks act on it together, next time
        self._pending = False  # evaluated since the last flush

    @property
    def decision(self) -> Decision | None:
        """The last evaluated decision."""
        return self.session.decision

    @property
    def halted(self) -> bool:
        """Whether a frame above the halt threshold ended the run. ``timer timeout off`` lets LAMMPS run again."""
        return self.session.status == "halted"

    def close(self) -> None:
        """Write what is left and print the summary. Collective; a second call does nothing."""
        atexit.unregister(self.close)
        self.session.close()

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
        if not self.session.due(step):
            return
        frame, error = None, self._late
        if error is None:
            try:
                frame = self._reader.read(step, end_of_step)
            except Exception as caught:  # noqa: BLE001 - whatever it is, the other ranks must hear of it
                error = caught
        try:
            if self.session.status == "halted":
                self.session.acknowledge()  # LAMMPS runs again, so somebody has reset its timer
            decision = self.session.observe(frame, step=step, error=error)
        except QuestsError as failure:
            self.failure = failure
            self._publish_failure(step)
            self._library.stop()
            raise
        try:
            self._publish(decision)
        except Exception as caught:  # noqa: BLE001 - a rank that left alone would leave the others waiting
            self._late = caught
        self._pending = True
        if decision.stop:
            self._library.stop()

    def after_command(self) -> None:
        """Raise what ended the watching, once; write the last frame of a run that has ended. Collective."""
        if self.failure is not None and not self._raised:
            self._raised = True
            raise self.failure
        if self._pending and self.session.status in ("running", "halted"):
            self._pending = False
            self.session.flush()

    def _publish(self, decision: Decision) -> None:
        """Write dH to d_dH and the global values to the fix: what LAMMPS sees at this very step."""
        target = self._library.vector("d_dH", len(decision.dH))
        np.copyto(target, decision.dH)
        target[np.isnan(target)] = 0.0
        mean = decision.mean if decision.n else 0.0
        values = (
            decision.maximum,
            mean,
            decision.n_select,
            decision.n_halt,
            decision.step,
            self.session.n_saved,
        )
        self._set_values(values)

    def _publish_failure(self, step: int) -> None:
        # inf, never nan: `fix halt` acts on inf and is blind to nan.
        self._library.vector("d_dH", self._library.setting("nlocal"))[:] = np.inf
        self._set_values((np.inf, np.inf, 0, 0, step, self.session.n_saved))

    def _set_values(self, values: Sequence[float]) -> None:
        for i, value in enumerate(values, start=1):
            self._library.set_vector(_FIX, i, float(value))


def attach(
    lmp: Any,
    index: Index | RunConfig | str | os.PathLike[str],
    *,
    elements: Sequence[str] | None = None,
    k: int | None = None,
    cutoff: float | None = None,
    select: float | None = None,
    halt: float | None = None,
    every: int | None = None,
    save_every: int | None = None,
    output: str | os.PathLike[str] | None = None,
    overwrite: bool | None = None,
    values: str | None = None,
    threads: int | None = None,
    group: str | None = None,
    check_masses: bool | None = None,
    skin: float | None = None,
    length_unit: float | None = None,
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
        replace those of the configuration.
    elements
        Chemical symbol of every atom type in order; "NULL" for types that are no atoms.
    k, cutoff, select, halt, every, save_every, output, overwrite, values, threads, group, check_masses, skin, \
    length_unit
        See `RunConfig`.

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
    given = {
        "elements": elements, "k": k, "cutoff": cutoff, "select": select, "halt": halt,
        "every": every, "save_every": save_every,
        "output": output, "overwrite": overwrite, "values": values, "threads": threads, "group": group,
        "check_masses": check_masses, "skin": skin, "length_unit": length_unit,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if "output" in given:
        given["output"] = os.fspath(output)  # type: ignore[arg-type]
    earlier: Watch | None = getattr(lmp, _ATTRIBUTE, None)
    if earlier is not None:  # before `clear`
        earlier.close()
    watch = _attach(Library.of_module(lmp), index, given, host="lammps module")
    watch._library.set_callback(_FIX, _swallowing(watch))
    setattr(lmp, _ATTRIBUTE, watch)
    if earlier is None:
        _guard(lmp)
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
    global _watch
    if _watch is not None:  # the script went on to another system, after `clear`
        _watch.close()
        _watch = None
    _watch = _attach(Library.of_capsule(capsule), config, {}, host="lammps input script")
    # fix external holds the global values here; it evaluates nothing, for fix python/invoke does.
    _watch._library.set_callback(_FIX, lambda step: None)
    atexit.register(_watch.close)


def quests_step(capsule: Any, vflag: int | None = None) -> None:
    """Evaluate the present step; for ``fix python/invoke N end_of_step`` (or ``post_force``).

    A failure is raised on all ranks at the same step, so LAMMPS ends with an error on all of them.
    """
    if _watch is None:
        raise HostError("quests_attach was not invoked before the run")
    _watch.evaluate(_watch._library.step, end_of_step=vflag is None)


def _attach(library: Library, index: Any, given: dict[str, Any], host: str) -> Watch:
    """Make a watch, or raise on all ranks."""
    if library.setting("box_exist") == 0:
        raise HostError("there is no simulation box yet: attach after the atoms are there")
    comm = _comm_of(library)
    config, reference, reader, error = None, None, None, None
    try:
        config, reference = _resolve(index, given)
        reader = FrameReader(library, config, reference, comm)
    except (QuestsError, OSError) as caught:
        error = caught
    raise_together(comm, error)
    assert config is not None
    assert reader is not None
    reader.check_ghosts(library.communication(comm.rank), comm)
    session = Session.from_config(config, comm, reference, host)
    library.command(f"fix {_FIX_ATOM} all property/atom d_dH")
    library.command(f"fix {_FIX} all external pf/callback {config.every} {config.every}")
    # It adds neither energy nor virial, but some LAMMPS count its virial before they have set it to zero.
    library.command(f"fix_modify {_FIX} energy no virial no")
    library.set_vector_length(_FIX, _ENTRIES)
    watch = Watch(library, session, reader)
    watch._set_values((0.0, 0.0, 0.0, 0.0, -1.0, 0.0))  # LAMMPS leaves them as the memory was
    return watch


def _resolve(index: Any, given: dict[str, Any]) -> tuple[RunConfig, Index]:
    """Return configuration and opened index of what `attach` was given."""
    if isinstance(index, RunConfig):
        config = RunConfig.make({**index.model_dump(exclude_unset=True), **given})
    elif isinstance(index, Index):
        config = RunConfig.make({"index": str(index.path), **given})
        return config, index
    elif os.fspath(index).endswith(".toml"):
        config = RunConfig.read(index)
        config = RunConfig.make({**config.model_dump(exclude_unset=True), **given}, where=str(index))
    else:
        config = RunConfig.make({"index": os.fspath(index), **given})
    return config, Index.open(config.index)


def _comm_of(library: Library) -> Comm:
    size = library.setting("world_size")
    handle = library.fortran_comm
    if size <= 1 and (handle == -1 or not _has_mpi4py()):
        return Serial()
    comm = MpiComm(handle)
    if comm.size != size:
        raise HostError(
            f"LAMMPS runs on {size} ranks and mpi4py sees {comm.size}: they use different MPI libraries; "
            "start LAMMPS with the mpiexec of its own MPI"
        )
    return comm


def _has_mpi4py() -> bool:
    from importlib.util import find_spec

    return find_spec("mpi4py") is not None


def _swallowing(watch: Watch) -> Callable[[int], None]:
    """Return a callback for C code, which cannot pass an exception on: `after_command` raises it."""

    def callback(step: int) -> None:
        with contextlib.suppress(QuestsError):  # kept in watch.failure
            watch.evaluate(step, end_of_step=False)

    return callback


def _guard(lmp: Any) -> None:
    """Let the methods of a lammps instance raise what failed inside the run that they started."""

    def after(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **keywords: Any) -> Any:
            result = method(*arguments, **keywords)
            getattr(lmp, _ATTRIBUTE).after_command()
            return result

        return call

    for name in ("command", "commands_list", "commands_string", "file"):
        setattr(lmp, name, after(getattr(lmp, name)))
    close = lmp.close

    @functools.wraps(close)
    def close_both() -> None:
        getattr(lmp, _ATTRIBUTE).close()
        close()

    lmp.close = close_both
