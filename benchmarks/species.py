"""What each choice of how elements enter costs an atom, for three binary materials."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.build import bulk

from quests_md import DescriptorSpec, Index, Monitor
from quests_md.frame import Frame

from .printing import head, target
from .timing import alternate

MODES = ("ignore", "centre", "full", "neighbours")
LIMIT = 1.6  # times what the descriptor of "ignore" takes
REPETITIONS, REFERENCES, BANDWIDTH = 7, 5, 0.03
MATERIALS: dict[str, Any] = {
    "NaCl": lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (8, 8, 8),
    "MgO": lambda: bulk("MgO", "rocksalt", a=4.21, cubic=True) * (8, 8, 8),
    "CuZr": lambda: bulk("CuZr", "cesiumchloride", a=3.26) * (13, 13, 13),
}


def main() -> None:
    """Print a table for each material."""
    head("Elements: µs per atom, medians, one thread")
    for name, make in MATERIALS.items():
        _measure(name, make)


def _measure(name: str, make: Any) -> None:
    frames = []
    for seed in range(REFERENCES + 1):
        atoms = make()
        atoms.rattle(0.1, seed=seed)
        frames.append(Frame.from_atoms(atoms))
    frame, calls = frames.pop(), {}
    n = len(frame.numbers)
    for species in MODES:
        index = Index.build(frames, DescriptorSpec(species=species), BANDWIDTH)
        rows = index.spec.compute(frame)
        select = float(np.quantile(index.delta_entropy(rows), 0.99))
        monitor = Monitor(index, select=select, halt=1e6, values="flagged")
        calls[species, "descriptor"] = lambda spec=index.spec: spec.compute(frame, 1)
        calls[species, "dH"] = lambda index=index, rows=rows: index.log_kernel_sum(rows, 1, precision="single")
        calls[species, "flagged"] = lambda monitor=monitor: monitor.observe(frame)
    _, times = alternate(calls, REPETITIONS)
    points = (np.linalg.norm(_vectors(frame), axis=1) < 5.0).sum() - 1
    print(f"\n{name}, {n} atoms, about {points} neighbours, index of {REFERENCES * n}")
    print(f"  {'species':<12}{'columns':>8}{'descriptor':>12}{'per ignore':>12}{'exact dH':>10}{'flagged':>10}")
    for species in MODES:
        each = [1e6 * times[species, what] / n for what in ("descriptor", "dH", "flagged")]
        ratio = times[species, "descriptor"] / times["ignore", "descriptor"]
        columns = 63 * {"full": 3, "neighbours": 2}.get(species, 1)
        print(f"  {species:<12}{columns:>8}{each[0]:>12.2f}{ratio:>12.2f}{each[1]:>10.2f}{each[2]:>10.2f}")
    ratio = times["neighbours", "descriptor"] / times["ignore", "descriptor"]
    target('the descriptor of "neighbours" per "ignore"', ratio, LIMIT, "")


def _vectors(frame: Frame) -> Any:
    """Return the vectors from the first atom to all others, to the nearest image of each."""
    inverse = np.linalg.inv(np.asarray(frame.cell))
    fractional = (frame.positions - frame.positions[0]) @ inverse
    return (fractional - np.round(fractional)) @ np.asarray(frame.cell)


if __name__ == "__main__":
    main()
