"""Thermodynamics: entropies of states, phases and their boundary, and the entropies that they are compared with.

The entropy H of a dataset is in nats, and takes the place of S/k_B per atom. It is not that: it depends on the
bandwidth, on the number of environments and on the descriptor, and has no zero that two phases would share. Energies
are in eV and volumes in Å³, both per atom; pressures are in GPa, temperatures in K, other entropies in k_B per atom.
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
