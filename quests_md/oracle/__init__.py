"""Whatever supplies labels, and what is made of them: the queue, labelling, trainers."""

from __future__ import annotations

from ._checks import check_labels
from ._command import CommandTrainer
from ._compute import Outcome, compute
from ._errors import Errors, errors
from ._executors import EXECUTORS, make_executor
from ._label import Labelling, label
from ._labels import STATES, Claim, Entry, Labels
from ._oracle import Oracle
from ._pod import PodTrainer
from ._potential import Potential
from ._queue import Queue
from ._rows import digest
from ._trainer import Trainer, make_trainer, train

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
