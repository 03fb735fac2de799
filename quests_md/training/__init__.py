"""Potentials of labelled frames: programs that train them, the potentials, and their errors."""

from __future__ import annotations

from ._command import CommandTrainer
from ._pod import PodTrainer
from ._potential import Potential
from ._records import Errors
from ._trainer import Trainer, errors, make_trainer, train

__all__ = ["CommandTrainer", "Errors", "PodTrainer", "Potential", "Trainer", "errors", "make_trainer", "train"]
