"""``python -m benchmarks NAME [options]``: run one benchmark; without a name, print all names."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from .timing import THREADS

# name: (what it measures, threads of numba and of BLAS; None: the benchmark starts processes and sets them there)
NAMES: dict[str, tuple[str, int | None]] = {
    "environments": ("µs per environment of descriptors and exact dH, beside quests", None),
    "decision": ("µs per atom-step of the certified decision in MD, beside quests; and whether it is right", 1),
    "live": ("what watching costs LAMMPS, 4096 atoms at every step, beside SNAP and Stillinger-Weber", 1),
    "small": ("µs of the processor per evaluation of 64, 512, 4096 atoms, flagged and exact, also with AVX2", None),
    "growth": ("cost per atom from 10³ to 10⁶ atoms; building, saving and opening an index of 10⁵ and 10⁶", 1),
    "million_entropy": ("entropy of 10⁶ environments from a mapped file: time, memory, pairs that are summed", None),
    "million": ("a million atoms in LAMMPS on two ranks: time and memory of an evaluation", 1),
    "selection": ("what a melting run keeps and covers, beside other choices of as many frames; two materials", 2),
    "species": ("µs per atom of each choice of how elements enter, for three binary materials", 1),
    "start": ("importing, the first evaluation, and what compiling costs", None),
    "freezing": ("a melt of silver that freezes: nuclei by dH beside adaptive common-neighbour analysis", 1),
    "false_alarms": ("thresholds from the calibration: asked rate of false alarms beside the measured one", 1),
    "force_errors": ("coverage of the bound of the force error, with the potentials and data of Zuo et al.", 1),
    "dataset": ("entropy, dH, learning curve, compression of real sets: same numbers as quests, times beside it", None),
    "errors": ("does dH tell where a potential is wrong: beside a committee, γ and the nearest distance", 1),
    "choice": ("n training structures by dH, farthest point, at random: errors of POD trained on each", 1),
    "learning": ("labels chosen by the loop, at random, evenly in time: errors of POD trained on as many of each", 1),
    "soap": ("SOAP vectors as own descriptors: what each bandwidth says of real silicon", None),
    "copper": ("entropy of solid copper by descriptors, beside the integral of C_p/T from the same runs", None),
    "lammps": ("what works in which LAMMPS: the tests of each feature, in every build that is here", None),
    "kokkos": ("what watching costs a LAMMPS with KOKKOS, beside one without, on the processor", 1),
    "soak": ("a long watched run: memory, descriptors and cost per evaluation must not grow", 1),
    "faults": ("faults that a run meets, each tried many times in real processes: what was wrong afterwards", 1),
    "verification": ("damaged and forged index files, each asked everything; and what verifying costs at opening", 1),
    "processors": ("decisions, rounding and values by kernels for other processors, against float64", None),
    "ranks": ("strong scaling of the verbs under mpiexec: one rank and two, with one thread each", 1),
    "steering": ("what a bias finds in copper and silicon, beside unbiased runs, and what it costs", 1),
    "steering_worth": ("labels from steered and from unsteered silicon: errors and survival of POD trained on each", 1),
    "mlips": ("what watching costs DeePMD, MACE, CHGNet and SevenNet: ms per step, share of the run", 1),
    "overlap": ("how much of a test set lies outside its training set: the table of docs/method.md", None),
}


def main() -> None:
    """Run the benchmark that the command line names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in NAMES:
        print("usage: python -m benchmarks NAME [options]; NAME --help lists the options\n")
        for known, (what, _) in NAMES.items():
            print(f"  {known:<17}{what}")
        raise SystemExit(0 if name in ("", "-h", "--help") else 2)
    threads = NAMES[name][1]
    if threads is not None:  # before numba or a BLAS is loaded: they read these once
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
    sys.argv[:2] = [f"python -m benchmarks {name}"]
    import_module(f".{name}", __package__).main()


if __name__ == "__main__":
    main()
