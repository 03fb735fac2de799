"""Bytes on disk: whole and append-safe writing, the folder of a run, records of arrays; `extxyz` has extended XYZ."""

from .folder import FolderLock, HeldFolder
from .writing import pack, unpack, write_atomically

__all__ = ["FolderLock", "HeldFolder", "pack", "unpack", "write_atomically"]
