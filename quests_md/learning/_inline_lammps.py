"""A LAMMPS that Python drives, and that learns where it halts."""

from __future__ import annotations

from typing import Any

from ..errors import HostError, InputError
from ..hosts.lammps import attach
from ._inline import Inline

__all__ = ["run_lammps"]

_KEYS = ("elements", "check_masses", "group", "skin", "restart_file")


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
        Keys of `attach` that are LAMMPS's own: `elements`, `check_masses`, `group`, `skin`, `restart_file`. Atom types
        have the order of the potential's elements, which is the default of `elements`.

    Raises
    ------
    InputError
        A key is not LAMMPS's own, or `elements` are not those of the potential.
    HostError
        LAMMPS runs on several ranks or in other units than metal, or cannot be watched as it is set up.
    Halted, OracleError, TrainingError
        The run cannot learn: see `Inline.learn`.
    """
    if lmp.extract_setting("world_size") > 1:
        raise HostError("a run that learns in its own process has one rank; quests-md learn runs several explorations")
    if lmp.extract_global("units") != "metal":
        raise HostError("a trained potential is one for units metal: set up LAMMPS with them")
    strange = sorted(set(keys) - set(_KEYS))
    if strange:
        raise InputError(f"{', '.join(strange)}: not for run_lammps, whose keys are {', '.join(_KEYS)}: tell Inline")
    first = lmp.extract_global("ntimestep")
    last = first + steps
    _define(inline, lmp)
    while True:
        elements = list(inline.potential.elements)
        if list(keys.get("elements", elements)) != elements:
            raise InputError(f"the atom types must be {elements}, as in the potential, not {list(keys['elements'])}")
        given = {"elements": elements, **inline.keys(), **keys}
        watch = attach(lmp, inline.index, **given)
        inline.session = watch.session
        try:
            lmp.command(f"run {last} upto start {first} stop {last}")  # ramps go on where they were
        finally:
            watch.detach()
        if not watch.halted:
            return
        lmp.command("timer timeout off")  # what the halt had set
        inline.learn(watch.session)
        _define(inline, lmp)


def _define(inline: Inline, lmp: Any) -> None:
    lmp.command("pair_style none")  # pair_style pod cannot be defined a second time over itself
    for command in inline.potential.commands():
        lmp.command(command)
