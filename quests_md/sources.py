"""Read files that ASE reads as frames, and files of own descriptors; describe where data came from."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FrameError, SourceError
from .frame import Frame

__all__ = [
    "describe_source",
    "read_atoms",
    "read_descriptors",
    "read_force_errors",
    "read_frames",
    "read_labelled",
    "to_frame",
]

_SELECTION = re.compile(r"-?\d+|(-?\d+)?:(-?\d+)?(:(-?\d+)?)?")


def read_frames(source: str | os.PathLike[str], group_key: str | None = None) -> Iterator[Frame]:
    """Iterate over the frames of a file.

    Parameters
    ----------
    source
        A file that ASE reads, optionally with a slice in ASE's notation: ``md.xyz``, ``md.xyz@-1``, ``md.traj@::10``.
        Without a slice all frames are read.
    group_key
        Key of a frame's info that names its origin; the value becomes its `group`.

    Yields
    ------
    Frame
        `step` and `time` (ps) are those of the frame's info ("step", "time"), if they are numbers; without a step, the
        frames are counted. A "timestep" that is a whole number, as in a LAMMPS dump, is a step. Any other "timestep",
        such as 0.5, is the time step of a dynamics and is not read. `ids` are those of an array "id" or "ids" of whole
        numbers (names of sites are no ids), and `forces` those of "model_forces". In a cut-out
        (`quests_md.selection.Cutout`) only the core is watched.

    Raises
    ------
    SourceError
        The file does not exist or has no frames, ASE cannot read it, or a frame lacks the key.
    """
    for frame, _ in _read(source, group_key):
        yield frame


def read_atoms(source: str | os.PathLike[str]) -> Iterator[Any]:
    """Iterate over the frames of a file as ``ase.Atoms``, with everything that ASE reads.

    Parameters
    ----------
    source
        As in `read_frames`.

    Raises
    ------
    SourceError
        As `read_frames`.
    """
    for _, atoms in _read(source, None):
        yield atoms


def read_force_errors(
    source: str | os.PathLike[str], group_key: str | None = None
) -> Iterator[tuple[Frame, NDArray[np.float64]]]:
    """Iterate over labelled frames and the force error of each environment.

    Parameters
    ----------
    source, group_key
        As in `read_frames`. The oracle's forces are those that ASE reads (``forces`` of an extxyz), the model's are the
        array ``model_forces``; both in eV/Å.

    Yields
    ------
    frame, error
        A `Frame`, and the norm (n_env,) of the difference of the two forces on each environment, in eV/Å.

    Raises
    ------
    SourceError
        As `read_frames`; or a frame lacks one of the forces, or a force is not finite.
    """
    for count, (frame, atoms) in enumerate(_read(source, group_key)):
        oracle = atoms.calc.results.get("forces") if atoms.calc is not None else None
        model = atoms.arrays.get("model_forces")
        for name, forces in (("forces (the oracle's)", oracle), ("model_forces (the model's)", model)):
            if forces is None or np.shape(forces) != (len(atoms), 3) or not np.isfinite(forces).all():
                raise SourceError(f"{source}: frame {count} needs {name}: three finite numbers, in eV/Å, for each atom")
        yield frame, np.linalg.norm(np.asarray(oracle) - np.asarray(model), axis=1)[frame.centres]


def read_labelled(source: str | os.PathLike[str]) -> Iterator[Any]:
    """Iterate over the frames of a file as ``ase.Atoms`` with labels, which each frame must have.

    Parameters
    ----------
    source
        As in `read_frames`.

    Yields
    ------
    ase.Atoms
        Its calculator holds energy and forces, and the stress if the file has it.

    Raises
    ------
    SourceError
        As `read_frames`; or a frame has no energy or no forces.
    """
    for count, atoms in enumerate(read_atoms(source)):
        found = set() if atoms.calc is None else set(atoms.calc.results)
        missing = sorted({"energy", "forces"} - found)
        if missing:
            raise SourceError(f"{source}: frame {count} has no label: {' and '.join(missing)} are missing")
        yield atoms


def read_descriptors(source: str | os.PathLike[str]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Open a file of own descriptors: an array that ``numpy.save`` has written.

    Parameters
    ----------
    source
        A file ``.npy`` of rows (n, d), or of frames with the same number of environments, (n_frames, n_atoms, d).

    Returns
    -------
    rows, frame_offsets
        The rows (n, d), mapped into memory and never written to; and the first row of every frame (n_frames + 1,), or
        None if the file has rows only.

    Raises
    ------
    SourceError
        The file does not exist, is no array that numpy reads without pickle, or the array has a wrong shape or type.
    """
    try:
        rows = np.lib.format.open_memmap(source, mode="c")  # not np.load, which also opens archives
    except FileNotFoundError:
        raise SourceError(f"{source}: no such file") from None
    except Exception as error:
        # numpy raises many types of exceptions: after a broken header, for example, those of Python's tokenizer.
        raise SourceError(f"{source}: not an array that numpy reads without pickle: {error}") from error
    if rows.ndim not in (2, 3) or rows.dtype.kind not in "fiu" or not rows.size:
        what = f"{rows.dtype} {rows.shape}"
        raise SourceError(f"{source}: descriptors are an array of numbers, (n, d) or (frames, atoms, d), not {what}")
    if rows.ndim == 2:
        return rows, None
    return rows.reshape(-1, rows.shape[2]), rows.shape[1] * np.arange(len(rows) + 1)


def _read(source: str | os.PathLike[str], group_key: str | None) -> Iterator[tuple[Frame, Any]]:
    """Iterate over the frames of a file, each with the ``ase.Atoms`` that it views."""
    import ase.io

    path, selection = _split(source)
    count = 0
    try:
        # parallel=False, because one rank may read alone: with mpi4py imported, ASE's reading is collective otherwise.
        for atoms in ase.io.iread(path, index=selection, parallel=False, do_not_split_by_at_sign=True):
            where = f"{path}: frame {count}"
            group = _read_group(atoms, group_key, where)
            try:
                frame = to_frame(atoms, count, group)
            except FrameError as error:  # else the message would blame ASE
                raise SourceError(f"{where}: {error}") from error
            yield frame, atoms
            count += 1
    except SourceError:
        raise
    except Exception as error:
        # ASE's readers raise many types of exceptions, even those of sqlite3.
        what = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path}: ASE cannot read it after {count} frames: {what}") from error
    if count == 0:
        raise SourceError(f"{path}: no frames in it (selection {selection!r})")


def describe_source(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Return where data came from: path, selection, SHA-256, size and date of the file."""
    path, selection = _split(source)
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    stat = path.stat()
    modified = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.timezone.utc)
    return {
        "file": str(path),
        "selection": selection,
        "sha256": digest.hexdigest(),
        "bytes": stat.st_size,
        "modified": modified.isoformat(timespec="seconds"),
    }


def _split(source: str | os.PathLike[str]) -> tuple[Path, str]:
    text = os.fspath(source)
    path, selection = (text, ":") if Path(text).exists() or "@" not in text else text.rsplit("@", 1)
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such file")
    if not _SELECTION.fullmatch(selection):
        raise SourceError(f"{text}: {selection!r} is not a slice such as @0:100:2 or @-1")
    return Path(path), selection


def _read_group(atoms: Any, key: str | None, where: str) -> str | None:
    if key is None:
        return None
    if key not in atoms.info:
        raise SourceError(
            f"{where} has no {key!r} in its info, which has {', '.join(map(str, atoms.info)) or 'nothing'}"
        )
    return str(atoms.info[key])


def to_frame(atoms: Any, count: int = 0, group: str | None = None) -> Frame:
    """Return the frame of an ``ase.Atoms`` as `read_frames` does; `count` is its step if its info has none."""
    info = atoms.info
    ids = _to_ids(atoms.arrays.get("id", atoms.arrays.get("ids")))
    # Outside the core, the environments of a cut-out exist in no simulation: an index must not learn them.
    core = atoms.arrays.get("core") if info.get("cutout") else None
    forces = atoms.arrays.get("model_forces")
    step, time = _read_step(info, count), _to_number(info.get("time"))
    return Frame.from_atoms(atoms, step, time, ids=ids, watched=core, forces=forces, group=group)


def _read_step(info: Mapping[str, Any], count: int) -> int:
    """Return the step in a frame's info, else `count`."""
    # ASE reads TIMESTEP of a LAMMPS dump, a step, as "timestep"; elsewhere it is the time step of the dynamics.
    for name in ("step", "timestep"):
        if isinstance(info.get(name), (int, np.integer)) and not isinstance(info[name], bool):
            return int(info[name])
    step = _to_number(info.get("step"))
    return int(step) if step.is_integer() else count


def _to_number(value: Any) -> float:
    """Return a number as float; nan for anything else, such as "0.5 ps" or "relax_3"."""
    if isinstance(value, (bool, np.bool_)) or np.ndim(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _to_ids(values: NDArray[Any] | None) -> NDArray[np.int64] | None:
    """Return an array of whole numbers as ids; None for any other array, such as names of sites or residues."""
    if values is None or values.ndim != 1:
        return None
    if values.dtype.kind in "iu":
        return values
    try:
        with np.errstate(invalid="ignore"):  # nan
            ids = (values if values.dtype.kind == "f" else values.astype(str)).astype(np.int64)
    except ValueError:
        return None
    return ids if values.dtype.kind != "f" or np.array_equal(ids, values) else None
