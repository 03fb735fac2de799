"""Potentials of labelled frames: programs that train them, the potentials, and their errors."""

from __future__ import annotations

from ._command import CommandTrainer
from ._model_forces import check_units, fingerprint, measure_residuals, read_commands
from ._pod import PodTrainer
from ._potential import Potential
from ._records import Errors
from ._trainer import Trainer, errors, make_trainer, train

__all__ = [
    "CommandTrainer", "Errors", "PodTrainer", "Potential", "Trainer", "check_units", "errors", "fingerprint",
    "make_trainer", "measure_residuals", "read_commands", "train"]  # fmt: skip
