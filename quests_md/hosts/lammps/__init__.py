"""LAMMPS as host: ``attach`` for a Python-driven LAMMPS, three functions for input scripts."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import Any

from ...comm import Comm, Serial, raise_together
from ...config import RunConfig
from ...errors import HostError, InputError, QuestsError
from ...index import Described, Index, Live
from ...recording import HOOKS, Session, reference_of
from ..mpi import MpiComm
from ._arrays import FIX, FIX_ATOM, FIX_ERROR, FrameReader
from ._instance import attach_watch, get_watch
from ._library import Library, get_address
from ._pushing import Pushing, warn_of_heat
from ._replicas import BREAKER, Breaker, Replicas, find_replicas
from ._watch import Watch

__all__ = ["Watch", "attach", "quests_attach", "quests_close", "quests_step"]

_ENTRIES = 6  # global values of fix quests
_OF_ERRORS = 2  # more of them, if force errors are expected
_DESCRIBE = "describe"  # the key that may be a function, too
_MODULE = "lammps module"  # the host name of a LAMMPS that is driven from Python
_WRITEDATA = 20230802  # from this version on fix property/atom has the keyword writedata
# The watches of input scripts, by the address of their LAMMPS: that is all that quests_step is told.
_watches: dict[int, Watch] = {}


def attach(
    lmp: Any,
    index: Index | Described | RunConfig | str | os.PathLike[str] | None = None,
    **keys: Any,
) -> Watch:
    """Watch a Python-driven LAMMPS. Collective: all ranks call it, after the atoms are there and before the run.

    From then on every ``run``, ``minimize`` and ``rerun`` is watched at the steps that are multiples of `every`, the
    first step included. When watching fails, the command that is running raises. When a frame lies above `halt`, the
    run ends after that step, and later runs do nothing until the command ``timer timeout off``.

    Parameters
    ----------
    lmp
        An instance of the ``lammps`` module.
    index
        An `Index`, a `Described` one, the path of an index, a `RunConfig` or the path of a quests.toml (".toml").
        Keywords replace keys of the configuration. None with ``reference="live"``.
    **keys
        Any key of `RunConfig`, which explains them: ``elements=["Si"], select=5.0, halt=20.0, every=10``. Here
        `on_select`, `on_halt` and `on_event` may be functions, as in `Session`, and `describe`, as in `Described`.

    Returns
    -------
    Watch
        Has the session, the last decision, and `close`.

    Raises
    ------
    HostError
        LAMMPS cannot be watched as it is set up: no box, an old KOKKOS, units, ghost cutoff (the message says what
        ``comm_modify cutoff`` to set), masses that do not fit the elements.
    ConfigError, ElementError, IndexFileError, OutputError
        The configuration, the elements, the index or the output folder are wrong. All errors are raised on all ranks.
    """
    hooks = {name: keys.pop(name) for name in list(keys) if callable(keys[name]) and name != _DESCRIBE}
    keys = {name: os.fspath(key) if isinstance(key, os.PathLike) else key for name, key in keys.items()}
    library = Library.from_module(lmp)
    earlier = get_watch(lmp)
    if earlier is not None and not earlier.watching:  # after `clear` the program goes on to another system
        earlier.close()
    watch = _attach(library, index, keys, hooks, host=_MODULE, universe=getattr(lmp, "comm", None))
    attach_watch(lmp, watch)
    return watch


def quests_attach(capsule: Any, config: str) -> None:
    """Watch the LAMMPS that runs an input script. Call it by the command ``python ... invoke``.

    Parameters
    ----------
    capsule
        What LAMMPS passes for ``SELF``.
    config
        Path of a quests.toml.
    """
    address = get_address(capsule)
    if address in _watches:  # after `clear` the script goes on to another system
        _watches.pop(address).close()
    try:
        watch = _watches[address] = _attach(Library(None, address), config, {}, {}, host="lammps input script")
    except QuestsError as error:
        _show_plainly(error)
        raise
    atexit.register(watch.end_with_program)


def quests_step(capsule: Any, vflag: int | None = None) -> None:
    """Evaluate the present step. Call it by ``fix python/invoke N end_of_step`` (or ``post_force``).

    A failure is raised on all ranks at the same step, so that LAMMPS ends with an error on all of them.
    """
    try:
        watch = _watches.get(get_address(capsule))
    except BaseException as error:
        for watch in _watches.values():  # an error of this rank alone, and it is not known which LAMMPS has called
            watch.take(error)
        raise
    if watch is None:
        raise HostError("quests_attach was not invoked before the run")
    try:
        watch.evaluate_or_raise(end_of_step=vflag is None)
    except QuestsError as error:
        _show_plainly(error)
        raise


def _show_plainly(error: QuestsError) -> None:
    """Let Python print no more of an error than its message, if that says all: our own lines tell a user nothing."""
    if error.__cause__ is None:
        sys.tracebacklimit = 0


def quests_close(capsule: Any) -> None:
    """End the watching, and write its cost to LAMMPS's log. Call it by ``python ... invoke``, after the last run."""
    watch = _watches.pop(get_address(capsule), None)
    if watch is None:
        raise HostError("quests_attach was not invoked before")
    try:
        watch.close()
        watch.log()
    except BaseException as error:
        if not isinstance(error, QuestsError):  # which all ranks raise
            watch.take(error)
        raise


def _attach(
    library: Library, index: Any, given: dict[str, Any], hooks: dict[str, Any], host: str, universe: Any = None
) -> Watch:
    """Make a watch, or raise an error on all ranks."""
    if library.get_setting("box_exist") == 0:
        raise HostError("there is no simulation box yet: attach after the atoms are there")
    for fix in (FIX, FIX_ATOM, FIX_ERROR, BREAKER):
        if library.has_fix(fix.encode()):
            raise HostError(f"there is a fix {fix} already: this LAMMPS is watched, or unfix it first")
    comm = _make_comm(library)
    config, reference, reader, error = None, None, None, None
    replicas: Replicas | None = None
    try:
        unknown = set(hooks) - set(HOOKS)
        if unknown:
            raise InputError(f"{min(unknown)} is a function, which only {', '.join(HOOKS)} may be")
        config, reference = _resolve(index, given)
        if config.restart_file is not None and host != _MODULE:
            raise InputError("restart_file is for LAMMPS driven from Python: put `write_restart` after the run")
        reader = FrameReader(library, config, reference)
        replicas = find_replicas(library, universe)
    except (QuestsError, OSError) as caught:
        error = caught
    raise_together(comm, error)
    assert config is not None
    assert reader is not None
    reader.prepare(comm)
    session = Session.from_config(config, comm, reference, host, **hooks)
    # In an input script fix external only holds the global values, and fix python/invoke says when to evaluate.
    within_step = host == _MODULE
    with contextlib.ExitStack() as failing:
        failing.push(session)
        pushing = Pushing(library, session, reader) if session.steering is not None else None
        if pushing is not None:
            warn_of_heat(library, comm)
        every = config.every if pushing is None else 1
        _define_fixes(library, every, comm, within_step, session.monitor.expects_errors, pushing is not None)
        breaker = Breaker(library) if within_step else None  # fix python/invoke can raise errors itself
        failing.pop_all()
    watch = Watch(library, session, reader, config, within_step, replicas, breaker, pushing)
    library.set_callback(FIX, watch.on_forces)
    return watch


def _define_fixes(library: Library, every: int, comm: Comm, within_step: bool, has_errors: bool, pushes: bool) -> None:
    # Without this write_data would add a section that read_data refuses. Older versions have `write_data ... nofix`.
    keep_out = " writedata no" if library.version >= _WRITEDATA else ""
    library.command(f"fix {FIX_ATOM} all property/atom d_dH i_quests{keep_out}")
    if has_errors:
        library.command(f"fix {FIX_ERROR} all property/atom d_error{keep_out}")
    library.command(f"group {FIX_ATOM} empty")
    # KOKKOS copies all arrays to the host and back around a fix that it does not have. It has a fix external, for which
    # it copies positions only: the dH that an evaluation writes there could be lost.
    kokkos = library.get_setting("kokkos_active") == 1
    on_host = kokkos and within_step and library.get_fix_styles(comm).get(FIX_ATOM, "").endswith("/kk")
    if on_host:
        library.command("suffix off")
    # It calls at every step, because atoms may be made between evaluations. Without a bias its forces are zero.
    library.command(f"fix {FIX} all external pf/callback 1 {every}")
    if on_host:
        library.command("suffix on")
    # It has no energy and no virial, but some versions add its virial before they have set it to zero.
    library.command(f"fix_modify {FIX} " + ("energy yes virial yes" if pushes else "energy no virial no"))
    library.set_vector_length(FIX, _ENTRIES + (_OF_ERRORS if has_errors else 0))


def _resolve(index: Any, given: dict[str, Any]) -> tuple[RunConfig, Index | Described | Live]:
    """Return the configuration and the reference that `attach` was given."""
    if callable(given.get(_DESCRIBE)):
        config, reference = _resolve(index, {name: key for name, key in given.items() if name != _DESCRIBE})
        if not isinstance(reference, Index):
            raise InputError("describe is for an index of own descriptors: leave it out")
        return config, Described(reference, given[_DESCRIBE])
    if index is None:
        config = RunConfig.make(given)
    elif isinstance(index, RunConfig):
        config = RunConfig.make({**index.model_dump(exclude_unset=True), **given})
    elif isinstance(index, (Index, Described)):
        config = RunConfig.make({"index": str(index.path), **given})
        return config, reference_of(config, index) if isinstance(index, Index) else index
    elif os.fspath(index).endswith(".toml"):
        config = RunConfig.read(index)
        config = RunConfig.make({**config.model_dump(exclude_unset=True), **given}, where=str(index))
    else:
        config = RunConfig.make({"index": os.fspath(index), **given})
    return config, reference_of(config)


def _make_comm(library: Library) -> Comm:
    size = library.get_setting("world_size")
    if size <= 1:
        return Serial()
    comm = MpiComm(library.fortran_comm)
    if comm.size != size:
        raise HostError(
            f"LAMMPS runs on {size} ranks and mpi4py sees {comm.size}: they use different MPI libraries; "
            "start LAMMPS with the mpiexec of its own MPI; quests-md doctor shows which that is"
        )
    return comm
