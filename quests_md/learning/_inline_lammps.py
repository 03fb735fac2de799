"""A LAMMPS that Python drives, and that learns where it halts."""

from __future__ import annotations

from typing import Any

from ..errors import HostError
from ..hosts.lammps import attach
from ._inline import Inline

__all__ = ["run_lammps"]


def run_lammps(inline: Inline, lmp: Any, steps: int, **keys: Any) -> None:
    """Run a number of steps under the monitor; where it halts, learn, and go on with the next potential.

    The potential of LAMMPS is that of `inline`, whatever was defined before.

    Parameters
    ----------
    inline
        The run that learns.
    lmp
        An instance of the ``lammps`` module, of one rank, set up to run: atoms, masses, fixes, and
        ``comm_modify cutoff`` as `attach` needs it.
    steps
        Steps to run.
    **keys
        Keys of `attach` that are LAMMPS's own, as ``elements=["Si"]`` or ``skin=1.0``; default of `elements` is the
        order of the potential.

    Raises
    ------
    HostError
        LAMMPS runs on several ranks, or cannot be watched as it is set up.
    Halted, OracleError, TrainingError
        The run cannot learn: see `Inline.learn`.
    """
    if lmp.extract_setting("world_size") > 1:
        raise HostError("a run that learns in its own process has one rank; quests-md learn runs several explorations")
    last = lmp.extract_global("ntimestep") + steps
    _define(inline, lmp)
    while True:
        given = {"elements": list(inline.potential.elements), **inline.keys(), **keys}
        watch = attach(lmp, inline.index, **given)
        inline.session = watch.session
        try:
            lmp.command(f"run {last} upto")
        finally:
            watch.detach()
        if not watch.halted:
            return
        lmp.command("timer timeout off")
        inline.learn(watch.session)
        _define(inline, lmp)


def _define(inline: Inline, lmp: Any) -> None:
    lmp.command("pair_style none")  # pair_style pod cannot be defined a second time over itself
    for command in inline.potential.commands():
        lmp.command(command)
