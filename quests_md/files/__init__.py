"""Bytes on disk: whole files, records, the folder of a run; `extxyz` formats frames as extended XYZ."""

from .folder import FolderLock, HeldFolder
from .writing import open_atomically, pack, unpack, write_atomically

__all__ = ["FolderLock", "HeldFolder", "open_atomically", "pack", "unpack", "write_atomically"]
