"""What names the references of an index and how they are compared; a calibration changes nothing of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ..descriptors import DescriptorSpec
from ..own import OwnDescriptors

if TYPE_CHECKING:
    from ._index import Index

__all__ = ["COMPARED", "fingerprint", "fingerprint_of"]

COMPARED = {"rows": "<f4", "centre": "<f8", "numbers": "<i2"}  # the sections that dH depends on


def fingerprint(
    descriptor: DescriptorSpec | OwnDescriptors, bandwidth: float, generation: int, digests: Mapping[str, str]
) -> str:
    """Return the hash of all that dH depends on, and of the generation; `digests` are those of `COMPARED`."""
    values = [asdict(descriptor), bandwidth, generation, {name: digests[name] for name in COMPARED}]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def fingerprint_of(index: Index) -> str:
    """Return the fingerprint of an index; all its rows are read."""
    arrays = {name: np.ascontiguousarray(getattr(index, name), dtype) for name, dtype in COMPARED.items()}
    digests = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
    return fingerprint(index.descriptor, index.bandwidth, index.generation, digests)
