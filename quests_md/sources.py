"""Files as frames, or as own descriptors, with their provenance. Whatever ASE reads is read."""

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
    "to_frame",
    "read_atoms",
    "read_descriptors",
    "read_force_errors",
    "read_frames",
    "read_labelled",
]

_SELECTION = re.compile(r"-?\d+|(-?\d+)?:(-?\d+)?(:(-?\d+)?)?")


def read_frames(source: str | os.PathLike[str], group_key: str | None = None) -> Iterator[Frame]:
    """Iterate over the frames of a file.

    Parameters
    ----------
    source
        A file that ASE reads, optionally with a slice in ASE's notation: ``md.xyz``, ``md.xyz@-1``, ``md.traj@::10``.
        Without a slice, all frames.
    group_key
        The key of the frames' info that names where a frame came from; it becomes their `group`.

    Yields
    ------
    Frame
        With `step` and `time` (ps) from the frame's info ("step", "time") where they are numbers; without a step
        `step` counts the frames. A "timestep" is a step where it is a whole number, as of a LAMMPS dump: 0.5 is the
        time step of a dynamics. `ids` are those of an array "id" or "ids", if it holds whole numbers (names of sites
        are no ids of atoms), and `forces` those of "model_forces". Of a cut-out (`quests_md.selection.Cutout`) the
        core is watched, and nothing else.

    Raises
    ------
    SourceError
        No such file, no frames in it, ASE cannot read it, or a frame lacks the key.
    """
    for frame, _ in _read(source, group_key):
        yield frame


def read_atoms(source: str | os.PathLike[str]) -> Iterator[Any]:
    """Iterate over the frames of a file as ``ase.Atoms``, with all that ASE finds there.

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
        As in `read_frames`. The oracle's forces are those of ASE (an extxyz's ``forces``), the model's the array
        ``model_forces``; both in eV/Å.

    Yields
    ------
    frame, error
        A `Frame`, and the norm (n_env,) of the difference of the two forces of each environment, in eV/Å.

    Raises
    ------
    SourceError
        As `read_frames`; or a frame lacks one of the forces, or they are not finite.
    """
    for count, (frame, atoms) in enumerate(_read(source, group_key)):
        oracle = atoms.calc.results.get("forces") if atoms.calc is not None else None
        model = atoms.arrays.get("model_forces")
        for name, forces in (("forces (the oracle's)", oracle), ("model_forces (the model's)", model)):
            if forces is None or np.shape(forces) != (len(atoms), 3) or not np.isfinite(forces).all():
                raise SourceError(f"{source}: frame {count} needs {name}: three finite numbers, in eV/Å, for each atom")
        yield frame, np.linalg.norm(np.asarray(oracle) - np.asarray(model), axis=1)[frame.centres]


def read_labelled(source: str | os.PathLike[str]) -> Iterator[Any]:
    """Iterate over the frames of a file as ``ase.Atoms``, with the labels that each must have.

    Parameters
    ----------
    source
        As in `read_frames`.

    Yields
    ------
    ase.Atoms
        Its calculator holds energy and forces, and the stress where the file has it.

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
        A file ``.npy``, of rows (n, d); or of frames with as many environments each, (n_frames, n_atoms, d).

    Returns
    -------
    rows, frame_offsets
        (n, d), a map of the file, to which nothing is written; and (n_frames + 1,) the first row of every frame, None
        where the file does not tell frames.

    Raises
    ------
    SourceError
        No such file, no array that can be read without pickle, or one of another shape or type.
    """
    try:
        rows = np.lib.format.open_memmap(source, mode="c")  # and not np.load, which also opens archives
    except FileNotFoundError:
        raise SourceError(f"{source}: no such file") from None
    except Exception as error:
        # As varied as with frames: a broken header ends in errors of the tokenizer.
        raise SourceError(f"{source}: not an array that numpy reads without pickle: {error}") from error
    if rows.ndim not in (2, 3) or rows.dtype.kind not in "fiu" or not rows.size:
        what = f"{rows.dtype} {rows.shape}"
        raise SourceError(f"{source}: descriptors are an array of numbers, (n, d) or (frames, atoms, d), not {what}")
    if rows.ndim == 2:
        return rows, None
    return rows.reshape(-1, rows.shape[2]), rows.shape[1] * np.arange(len(rows) + 1)


def _read(source: str | os.PathLike[str], group_key: str | None) -> Iterator[tuple[Frame, Any]]:
    """Iterate over the frames of a file, each with its ``ase.Atoms``."""
    import ase.io

    path, selection = _split(source)
    count = 0
    try:
        # parallel=False: ASE's parallel reading is collective once mpi4py is imported, and one rank may read alone.
        for atoms in ase.io.iread(path, index=selection, parallel=False, do_not_split_by_at_sign=True):
            where = f"{path}: frame {count}"
            group = _group_of(atoms, group_key, where)
            try:
                frame = to_frame(atoms, count, group)
            except FrameError as error:  # ASE has read it
                raise SourceError(f"{where}: {error}") from error
            yield frame, atoms
            count += 1
    except SourceError:
        raise
    except Exception as error:
        # What ASE's readers raise for a malformed file is as varied as the readers are: sqlite3's errors too.
        what = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path}: ASE cannot read it after {count} frames: {what}") from error
    if count == 0:
        raise SourceError(f"{path}: no frames in it (selection {selection!r})")


def describe_source(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the provenance of a source: path, selection, SHA-256, size and date of the file."""
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


def _group_of(atoms: Any, key: str | None, where: str) -> str | None:
    if key is None:
        return None
    if key not in atoms.info:
        raise SourceError(
            f"{where} has no {key!r} in its info, which has {', '.join(map(str, atoms.info)) or 'nothing'}"
        )
    return str(atoms.info[key])


def to_frame(atoms: Any, count: int = 0, group: str | None = None) -> Frame:
    """Return an ``ase.Atoms`` as `read_frames` gives it; `count` is its step where its info has none."""
    info = atoms.info
    ids = _ids_of(atoms.arrays.get("id", atoms.arrays.get("ids")))
    # Beyond the core the environments of a cut-out are those of no frame: an index must not learn them.
    core = atoms.arrays.get("core") if info.get("cutout") else None
    forces = atoms.arrays.get("model_forces")
    step, time = _step_of(info, count), _number_of(info.get("time"))
    return Frame.from_atoms(atoms, step, time, ids=ids, watched=core, forces=forces, group=group)


def _step_of(info: Mapping[str, Any], count: int) -> int:
    """Return the step that a frame's info tells, else `count`."""
    # A LAMMPS dump's TIMESTEP is a step, and ASE gives it by this name; others mean the time step of their dynamics.
    for name in ("step", "timestep"):
        if isinstance(info.get(name), (int, np.integer)) and not isinstance(info[name], bool):
            return int(info[name])
    step = _number_of(info.get("step"))
    return int(step) if step.is_integer() else count


def _number_of(value: Any) -> float:
    """Return a number as such; nan for all that is none, as "0.5 ps" or "relax_3"."""
    if isinstance(value, (bool, np.bool_)) or np.ndim(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _ids_of(values: NDArray[Any] | None) -> NDArray[np.int64] | None:
    """Return an array that names the atoms by whole numbers; None for any other, as names of sites or residues."""
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
