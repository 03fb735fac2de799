"""Files of frames and of own descriptors: read them, find their labels by name, and describe where data came from."""

from ._labels import find_label, name_what_is_there
from ._reading import (
    MODEL_FORCES,
    ReadForces,
    ReadFrame,
    Reading,
    describe_source,
    name_source,
    read_all,
    read_atoms,
    read_descriptors,
    read_force_errors,
    read_forces,
    read_frames,
    read_labelled,
    to_frame,
)

__all__ = [
    "MODEL_FORCES", "ReadForces", "ReadFrame", "Reading", "describe_source", "find_label", "name_source",
    "name_what_is_there", "read_all", "read_atoms", "read_descriptors", "read_force_errors", "read_forces",
    "read_frames", "read_labelled", "to_frame",
]  # fmt: skip
