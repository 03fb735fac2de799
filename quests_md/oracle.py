"""The former name of two rooms: `quests_md.labelling` and `quests_md.training` hold what was here."""

from __future__ import annotations

from .labelling import (
    EXECUTORS,
    STATES,
    Claim,
    Entry,
    Labelling,
    Labels,
    Oracle,
    Outcome,
    Queue,
    check_labels,
    compute,
    digest,
    label,
    make_executor,
)
from .training import CommandTrainer, Errors, PodTrainer, Potential, Trainer, errors, make_trainer, train

__all__ = [
    "EXECUTORS",
    "STATES",
    "Claim",
    "CommandTrainer",
    "Entry",
    "Errors",
    "Labelling",
    "Labels",
    "Oracle",
    "Outcome",
    "PodTrainer",
    "Potential",
    "Queue",
    "Trainer",
    "check_labels",
    "compute",
    "digest",
    "errors",
    "label",
    "make_executor",
    "make_trainer",
    "train",
]
