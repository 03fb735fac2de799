"""A file of frames that grows, shrinks and is taken up again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..extxyz import properties, text
from ..files import AppendOnly, write_atomically
from ..frame import Frame

__all__ = ["ExtxyzSink", "format_frame"]

_PIECE = 1 << 20  # bytes that are copied at a time

Columns = dict[str, NDArray[Any]]

# What the line of a saved frame says of its place in the run.
_KEY = re.compile(rb" run=(\d+) step=(-?\d+) ")


class ExtxyzSink:
    """A file of frames, made by the first one.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = AppendOnly(path)
        self._sizes: list[int] = []  # bytes of every frame

    def __len__(self) -> int:
        return len(self._sizes)

    def append(
        self, frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], columns: Columns | None = None
    ) -> None:
        """Add a frame; `OutputError` if it cannot be written."""
        self._sizes.append(self._file.append(_parts(frame, dH, info, columns)))

    def remove(self, which: int) -> None:
        """Take a frame out of the file, atomically; `OutputError` if it cannot be written."""
        first = sum(self._sizes[:which])
        skipped = self._sizes[which]

        def write(file: BinaryIO) -> None:
            with open(self.path, "rb") as old:
                _copy(old, file, first)
                old.seek(skipped, 1)
                _copy(old, file, None)

        write_atomically(self.path, write)
        del self._sizes[which]

    def replace(
        self, frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], columns: Columns | None = None
    ) -> None:
        """Make this the only frame of the file, atomically; `OutputError` if it cannot be written."""
        write_atomically(self.path, lambda file: file.writelines(_parts(frame, dH, info, columns)))

    def resume(self) -> tuple[int, list[tuple[int, int]]]:
        """Cut off a frame that was not written in full, and find the others.

        Returns
        -------
        cut
            Bytes that were cut off.
        keys
            (run, step) of every frame.

        Raises
        ------
        OutputError
            The file cannot be read, or is damaged elsewhere than at its end.
        """
        found = list(_scan(self.path)) if self.path.exists() else []
        self._sizes = [size for size, _ in found]
        return self._file.cut(sum(self._sizes)), [key for _, key in found]

    def read(self) -> Iterator[Any]:
        """Yield the frames as ``ase.Atoms``; `OutputError` where ASE cannot read one."""
        import ase.io

        if self.path.exists():
            try:
                # One rank reads: ASE's own way under MPI is collective.
                yield from ase.io.iread(self.path, ":", format="extxyz", parallel=False)
            except (OSError, ValueError, KeyError, IndexError) as error:
                raise OutputError(f"{self.path}: a frame cannot be read: {error}") from error


def _scan(path: Path) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield size and (run, step) of every whole frame; what a program did not write in full is at the end."""
    with open(path, "rb") as file:
        first = 0
        while (count := file.readline()).endswith(b"\n"):
            comment = file.readline()
            key = _KEY.search(comment)
            if not count.strip().isdigit() or (comment.endswith(b"\n") and key is None):
                raise OutputError(f"{path}: damaged at byte {first}: no frame of a run begins there")
            last = comment
            for _ in range(int(count)):
                last = file.readline()
                if not last:
                    break
            if not last.endswith(b"\n"):
                return
            end = file.tell()
            assert key is not None
            yield end - first, (int(key[1]), int(key[2]))
            first = end


def _copy(source: BinaryIO, target: BinaryIO, size: int | None) -> None:
    """Copy so many bytes, or all that are left."""
    while size is None or size:
        part = source.read(_PIECE if size is None else min(size, _PIECE))
        if not part:
            break
        target.write(part)
        size = None if size is None else size - len(part)


def format_frame(frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], columns: Columns | None = None) -> bytes:
    """Format a whole frame as extended XYZ.

    Columns: species, pos, id, dH, those of `columns` (numbers or truth
    values, (n,) or (n, m)), and where the frame has
    them momenta (ASE's units, from the standard masses, so that ``atoms.get_velocities()`` is right) and model_forces.
    Keys: Lattice unless there is none, Origin if it is not zero, pbc, those of `info` (numbers, truth values, strings)
    and model_energy. ``energy`` and ``forces`` are left to labels of an oracle.
    """
    return b"".join(_parts(frame, dH, info, columns))


def _parts(frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], more: Columns | None) -> Iterator[bytes]:
    """Yield what `format_frame` returns, some atoms at a time: the text of a large frame takes much memory."""
    # ase is imported here, and not at the top, to keep `import quests_md.session` light.
    from ase.data import atomic_masses, chemical_symbols

    columns: list[tuple[str, NDArray[Any]]] = [("species", np.array(chemical_symbols)[frame.numbers])]
    columns += [("pos", frame.positions), ("id", np.asarray(frame.ids)), ("dH", dH)]
    if frame.velocities is not None:
        columns.append(("momenta", frame.velocities * atomic_masses[frame.numbers][:, None]))
    if frame.forces is not None:
        columns.append(("model_forces", frame.forces))
    columns += (more or {}).items()
    keys: dict[str, Any] = {"Lattice": frame.cell} if np.any(frame.cell) else {}
    keys["Properties"] = properties(columns)
    if np.any(frame.origin):
        keys["Origin"] = frame.origin
    keys.update(pbc=frame.pbc, **info)
    if frame.energy is not None:
        keys["model_energy"] = frame.energy
    yield from text(columns, keys)
