"""The potentials that people run: two tiny ones that are trained here, and two whose weights are in their wheels.

All are used for copper. `scripts/test-mlips` makes an environment that has them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import bulk

from quests_md import Frame, Index
from quests_md.information import likelihood_bandwidth
from quests_md.training import CommandTrainer, Potential, train

EXAMPLE = Path(__file__).parent.parent / "lammps_examples" / "deepmd_deviation"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "DP_INTRA_OP_PARALLELISM_THREADS": "1", "DP_INTER_OP_PARALLELISM_THREADS": "1"}
_MACE = (
    "--name=tiny", "--train_file={training}", "--valid_fraction=0.1", "--energy_key=energy", "--forces_key=forces",
    "--E0s=average", "--model=MACE", "--num_interactions=2", "--hidden_irreps=16x0e", "--MLP_irreps=8x0e",
    "--correlation=2", "--max_ell=2", "--r_max=4.0", "--batch_size=5", "--max_num_epochs=20", "--default_dtype=float64",
    "--device=cpu", "--seed={seed}", "--work_dir={folder}", "--model_dir={folder}",
)  # fmt: skip


class Kind(NamedTuple):
    """A potential: its name for people, the package it needs, and whether it is trained here."""

    name: str
    package: str
    is_trained: bool
    has_features: bool = False


KINDS = {
    "deepmd": Kind("DeePMD (se_e2_a, trained here)", "deepmd", True),
    "mace": Kind("MACE (16 channels, trained here)", "mace", True, True),
    "chgnet": Kind("CHGNet 0.3.0", "chgnet", False, True),
    "sevennet": Kind("SevenNet-0", "sevenn", False),
}


def is_here(kind: str) -> bool:
    """Return whether the package of a potential is installed."""
    return importlib.util.find_spec(KINDS[kind].package) is not None


def copper(cells: int, rattle: float = 0.05, seed: int = 0) -> Any:
    """Return a rattled crystal of copper, 4 atoms in each cell."""
    atoms = bulk("Cu", cubic=True, a=3.65) * (cells, cells, cells)
    atoms.rattle(rattle, seed=seed)
    return atoms


def make_trainer(kind: str, short: bool = False) -> CommandTrainer:
    """Return what trains DeePMD or MACE by its own program; `short`: for a test of what comes after."""
    programs = Path(sys.executable).parent
    if kind == "deepmd":
        steps = ("--steps", "100" if short else "1000")
        return CommandTrainer(
            command=(sys.executable, str(EXAMPLE / "train.py"), "{training}", "{folder}", "{seed}", *steps),
            files=("graph.pb",),
            lammps=("pair_style deepmd {folder}/graph.pb", "pair_coeff * * {elements}"),
            calculator={"call": "deepmd.calculator:DP", "model": "{folder}/graph.pb"},
            environment=_ONE_THREAD,
        )
    epochs = "--max_num_epochs=2" if short else "--max_num_epochs=20"
    return CommandTrainer(
        command=(str(programs / "mace_run_train"), *_MACE, epochs),
        files=("tiny.model",),
        calculator={
            "call": "mace.calculators:MACECalculator",
            "model_paths": "{folder}/tiny.model",
            "device": "cpu",
            "default_dtype": "float64",
        },
        environment=_ONE_THREAD,
    )


def train_potential(
    kind: str, frames: list[Any], folder: Path, short: bool = False
) -> tuple[Potential, dict[str, Any]]:
    """Train DeePMD or MACE, with some frames held out; return the potential and the record."""
    return train(make_trainer(kind, short), frames[:-4], frames[-4:], folder)


def make_calculator(kind: str, potential: Potential | None = None) -> Any:
    """Return a new ASE calculator: of a trained potential, or with the weights of the wheel."""
    if kind == "chgnet":
        from chgnet.model.dynamics import CHGNetCalculator

        return CHGNetCalculator(use_device="cpu")
    if kind == "sevennet":
        from sevenn.calculator import SevenNetCalculator

        return SevenNetCalculator("7net-0", device="cpu")
    assert potential is not None
    return potential.ase_calculator()


def make_describe(kind: str, calculator: Any) -> Callable[[Any], Any]:
    """Return the function of a frame that asks MACE or CHGNet for the features of its atoms."""
    if kind == "mace":
        return lambda frame: calculator.get_descriptors(_atoms_of(frame))
    from pymatgen.io.ase import AseAtomsAdaptor

    def describe(frame: Any) -> Any:
        structure = AseAtomsAdaptor.get_structure(_atoms_of(frame))
        return calculator.model.predict_structure(structure, return_atom_feas=True)["atom_fea"]

    return describe


def _atoms_of(frame: Any) -> Atoms:
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)


def index_features(describe: Callable[[Any], Any], frames: list[Any], name: str) -> Index:
    """Return an index of the features of frames, with the bandwidth of the largest likelihood."""
    x = [np.asarray(describe(Frame.from_atoms(frame)), float) for frame in frames]
    rows = np.vstack(x)
    scale = float(np.linalg.norm(rows - rows.mean(axis=0), axis=1).mean())
    bandwidth = likelihood_bandwidth(rows, scale * np.geomspace(0.001, 1.0, 31)).bandwidth
    return Index.from_descriptors(rows, bandwidth, frame_offsets=np.cumsum([0] + [len(r) for r in x]), name=name)
