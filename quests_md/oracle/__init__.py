"""Whatever supplies labels, and what is made of them: the queue, labelling, trainers."""

from __future__ import annotations

from ._command import CommandTrainer
from ._errors import Errors, errors
from ._pod import PodTrainer
from ._potential import Potential
from ._trainer import Trainer, make_trainer, train

__all__ = [
    "CommandTrainer",
    "Errors",
    "PodTrainer",
    "Potential",
    "Trainer",
    "errors",
    "make_trainer",
    "train",
]
