"""What each measure of `errors` costs an atom."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import DescriptorSpec, Index

from .peer import BANDWIDTH
from .snap import Grade, Snap, spread_of

__all__ = ["MEMBERS", "nearest", "print_times"]

REPEAT = 2  # of the cell, along each axis: 512 atoms
STEPS = 5
REPETITIONS = 5
MEMBERS = 20

# Commands that make LAMMPS compute rows, and nothing else, at every step.
_NO_FORCES = ("pair_style zero 6", "pair_coeff * *")
_PER_ATOM = "fix every all ave/atom 1 1 1 c_rows[*]"
_ALL = "fix every all ave/time 1 1 1 c_rows[*] mode vector"

_SUMS = {
    "dH": ("descriptor", "exact kernel sum"),
    "nearest distance": ("descriptor", "all distances"),
    "γ": ("bispectrum", "product with the active set"),
    "γ of forces": ("its gradients", "products with the active set"),
    "committee": ("its gradients", f"products with {MEMBERS} members"),
}


def nearest(x: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n,) the distance of each row to the nearest reference, by one product of matrices."""
    squares = (reference**2).sum(axis=1) - 2 * x @ reference.T
    return np.asarray(np.sqrt(np.maximum(squares.min(axis=1) + (x**2).sum(axis=1), 0.0)))


def print_times(snap: Snap, atoms: Any, training: list[Any]) -> None:
    """Print the processor's µs per atom of each measure, from positions."""
    large = atoms.repeat(REPEAT)
    spec = DescriptorSpec()
    index = Index.build(training, spec, BANDWIDTH, threads=1)
    x, reference = spec.compute(large, 1), index.rows + index.centre
    grade = Grade(np.random.default_rng(0).random((200, 56)))
    bispectrum, gradients = np.ones((len(large), 56)), np.ones((3 * len(large), 56))
    force_grade = Grade(np.random.default_rng(1).random((200, 55)))
    members = np.ones((56, MEMBERS))

    def micro(call: Callable[[], Any]) -> float:
        call()
        return 1e6 * _processor_seconds(call) / len(large)

    parts = {
        "the forces of SNAP": _lammps(snap, large, snap.commands),
        "descriptor": micro(lambda: spec.compute(large, 1)),
        "exact kernel sum": micro(lambda: index.delta_entropy(x, 1)),
        "all distances": micro(lambda: nearest(x, reference)),
        "bispectrum": _lammps(snap, large, (*_NO_FORCES, f"compute rows all {snap.bispectrum}", _PER_ATOM)),
        "its gradients": _lammps(snap, large, (*_NO_FORCES, f"compute rows all {snap.gradients}", _ALL)),
        "product with the active set": micro(lambda: grade(bispectrum)),
        "products with the active set": micro(lambda: force_grade(gradients[:, 1:])),
        f"products with {MEMBERS} members": micro(lambda: spread_of(gradients @ members)),
    }
    print(
        f"\n  processor's µs per atom, {len(large)} atoms, {len(reference)} references; the forces of SNAP themselves: "
        f"{parts['the forces of SNAP']:.0f}"
    )
    for measure, names in _SUMS.items():
        terms = ", ".join(
            f"{name} {parts[name]:.2g}" if parts[name] < 1 else f"{name} {parts[name]:.0f}" for name in names
        )
        print(f"  {measure:<19}{sum(parts[name] for name in names):>6.0f}   {terms}", flush=True)


def _processor_seconds(call: Callable[[], Any]) -> float:
    """Return the median of what a call takes of the processor: with one thread, its time on a machine of its own."""
    taken = []
    for _ in range(REPETITIONS):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def _lammps(snap: Snap, atoms: Any, commands: Sequence[str]) -> float:
    """Return µs per atom and step of LAMMPS with these commands; nothing moves."""
    lmp = snap.place(atoms, commands)
    lmp.command("run 1 post no")
    return 1e6 * _processor_seconds(partial(lmp.command, f"run {STEPS} pre no post no")) / STEPS / len(atoms)
