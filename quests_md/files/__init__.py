"""Bytes on disk: whole and append-safe writing, the folder of a run, extended XYZ, records of arrays."""

from .extxyz import format_atoms, format_frame, frame_parts, properties, text
from .folder import FolderLock, HeldFolder
from .records import pack, unpack
from .writing import write_atomically

__all__ = [
    "FolderLock",
    "HeldFolder",
    "format_atoms",
    "format_frame",
    "frame_parts",
    "pack",
    "properties",
    "text",
    "unpack",
    "write_atomically",
]
