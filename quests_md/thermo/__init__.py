"""Thermodynamics: entropies of states, the boundary of two phases, and entropies of thermodynamics to compare with.

The entropy H of a dataset, in nats, takes the place of S/k_B per atom. The two are not the same: H depends on the
bandwidth, on the number of environments and on the descriptor, and two phases have no common zero of H. Energies are in
eV and volumes in Å³, both per atom; pressures are in GPa, temperatures in K, other entropies in k_B per atom.
"""

from ._boundary import Boundary, Phase, phase_boundary
from ._entropies import (
    EV_PER_GPA,
    K_B,
    Entropies,
    EntropyDifference,
    Windows,
    entropy_difference,
    state_entropies,
    window_entropies,
)
from ._heat import Comparison, CouplingEntropy, HeatEntropy, compare, coupling_entropy, heat_entropy

__all__ = [
    "EV_PER_GPA",
    "K_B",
    "Boundary",
    "Comparison",
    "CouplingEntropy",
    "Entropies",
    "EntropyDifference",
    "HeatEntropy",
    "Phase",
    "Windows",
    "compare",
    "coupling_entropy",
    "entropy_difference",
    "heat_entropy",
    "phase_boundary",
    "state_entropies",
    "window_entropies",
]
