"""Potentials from labelled frames: programs that train, what they made, and how wrong it is."""

from __future__ import annotations

from ._command import CommandTrainer
from ._pod import PodTrainer
from ._potential import Potential
from ._trainer import Errors, Trainer, errors, make_trainer, train

__all__ = ["CommandTrainer", "Errors", "PodTrainer", "Potential", "Trainer", "errors", "make_trainer", "train"]
