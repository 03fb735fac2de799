"""Read files that ASE reads as frames, and files of own descriptors; describe where data came from."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import FrameError, InputError, SourceError
from ..files.extxyz import FrameText, find_frames, format_atoms, read_text
from ..frame import Frame
from ._labels import find_label, name_what_is_there, set_labels
from ._lammps_types import LAMMPS_DATA, LAMMPS_DUMP, LammpsTypes, give_ids, is_lammps_data, name_species, read_ids

__all__ = [
    "MODEL_FORCES",
    "ReadForces",
    "ReadFrame",
    "Reading",
    "describe_source",
    "name_source",
    "read_all",
    "read_atoms",
    "read_descriptors",
    "read_force_errors",
    "read_forces",
    "read_frames",
    "read_labelled",
    "to_frame",
]

T = TypeVar("T")

MODEL_FORCES = "model_forces"  # name of the forces of the model that made a frame
_SELECTION = re.compile(r"-?\d+|(-?\d+)?:(-?\d+)?(:(-?\d+)?)?")


@dataclass(frozen=True)
class Reading:
    """How files of frames are read.

    Parameters
    ----------
    format
        ASE's name of the format, if ASE cannot tell it: ``lammps-data``. Keywords of ASE's reader may follow:
        ``lammps-data:atom_style=charge,units=real``.
    elements
        Chemical symbols of the types 1, 2, ... of LAMMPS: ``("Si", "C")``. A dump without the column `element`, and a
        data file whose masses are those of no elements, need it. "X" is a site that is no atom.
    energy_key, forces_key, stress_key
        Names of the labels, if they are others than energy, forces and stress: ``energy_key="REF_energy"``. Units and
        signs are ASE's. A stress is 6 numbers in Voigt's order or 9; under a name that has "virial" in it, it is
        -stress times volume, in eV.

    Raises
    ------
    InputError
        A symbol is none.
    SourceError
        ASE knows no such format.
    """

    format: str | None = None
    elements: Sequence[str] | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None

    def __post_init__(self) -> None:
        wrong = [symbol for symbol in self.elements or () if symbol not in SYMBOLS]
        if isinstance(self.elements, str) or wrong:
            raise InputError(
                f"elements are chemical symbols of the types 1, 2, ... of LAMMPS, such as Si C, not "
                f"{self.elements if isinstance(self.elements, str) else ', '.join(map(str, wrong))!r}"
            )


class ReadFrame(NamedTuple):
    """A frame as it was read.

    Attributes
    ----------
    frame
        The frame.
    atoms
        The ``ase.Atoms`` that it views.
    written
        Its text in an extended XYZ file; None in other files.
    """

    frame: Frame
    atoms: Any
    written: FrameText | None

    @property
    def has_names(self) -> bool:
        """Whether the array of ids holds something else than whole numbers, such as names of sites."""
        ids = self.atoms.arrays.get("id", self.atoms.arrays.get("ids"))
        return ids is not None and _to_ids(ids) is None

    @property
    def text(self) -> FrameText:
        """The frame as extended XYZ: as it stands in its file, or, from another format, all that ASE reads."""
        return self.written or FrameText(format_atoms(self.atoms).decode("utf-8", "surrogateescape"))


class ReadForces(NamedTuple):
    """A labelled frame, and the forces of a model on it.

    Attributes
    ----------
    where
        Names the frame in errors.
    frame
        The frame.
    atoms
        The ``ase.Atoms`` that it views.
    oracle
        (n_env, 3) forces of the oracle on the environments of the frame, in eV/Å.
    model
        (n_env, 3) forces of the model, in eV/Å; None if they are not known.
    """

    where: str
    frame: Frame
    atoms: Any
    oracle: NDArray[np.float64]
    model: NDArray[np.float64] | None

    def errors(self) -> NDArray[np.float64]:
        """Return the force error (n_env,) of each environment: the norm of the difference, in eV/Å."""
        assert self.model is not None
        error: NDArray[np.float64] = np.linalg.norm(self.oracle - self.model, axis=1)
        return error


def read_frames(source: str | os.PathLike[str], group_key: str | None = None, **how: Any) -> Iterator[Frame]:
    """Iterate over the frames of a file.

    Parameters
    ----------
    source
        A file that ASE reads, optionally with a slice in ASE's notation: ``md.xyz``, ``md.xyz@-1``, ``md.traj@::10``.
        Without a slice all frames are read.
    group_key
        Key of a frame's info that names its origin; the value becomes its `group`.
    how
        Keywords of `Reading`: `format` and `elements`.

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
        The file does not exist or has no frames, ASE cannot read it, it does not tell the elements, or a frame lacks
        the key.
    """
    for found in read_all(source, group_key, **how):
        yield found.frame


def read_atoms(source: str | os.PathLike[str], **how: Any) -> Iterator[Any]:
    """Iterate over the frames of a file as ``ase.Atoms``, with everything that ASE reads.

    Parameters
    ----------
    source, how
        As in `read_frames`.

    Raises
    ------
    SourceError
        As `read_frames`.
    """
    for found in read_all(source, **how):
        yield found.atoms


def read_force_errors(
    source: str | os.PathLike[str], group_key: str | None = None, **how: Any
) -> Iterator[tuple[Frame, NDArray[np.float64]]]:
    """Iterate over labelled frames and the force error of each environment.

    Parameters
    ----------
    source, group_key
        As in `read_frames`. The oracle's forces are the label `forces`, the model's are the array ``model_forces``;
        both in eV/Å.
    how
        Keywords of `Reading`: `format`, `elements` and `forces_key`.

    Yields
    ------
    frame, error
        A `Frame`, and the norm (n_env,) of the difference of the two forces on each environment, in eV/Å.

    Raises
    ------
    SourceError
        As `read_frames`; or a frame lacks one of the forces, or a force is not finite.
    """
    for found in read_forces(source, group_key, **how):
        yield found.frame, found.errors()


def read_forces(
    source: str | os.PathLike[str], group_key: str | None = None, model_key: str | None = MODEL_FORCES, **how: Any
) -> Iterator[ReadForces]:
    """Iterate over labelled frames, with the forces of the oracle and, if the file has them, those of a model.

    Parameters
    ----------
    source, group_key, how
        As in `read_force_errors`.
    model_key
        Name of the model's forces, an array or a label, which each frame must have; None: they are not read.

    Raises
    ------
    SourceError
        As `read_force_errors`.
    """
    key = Reading(**how).forces_key
    for count, (frame, atoms, _) in enumerate(read_all(source, group_key, **how)):
        where = f"{source}: frame {count}"
        oracle = _take_forces(atoms, key or "forces", find_label(atoms, "forces", key, where), "oracle", where)
        model = None
        if model_key is not None:
            model = _take_forces(atoms, model_key, find_label(atoms, "forces", model_key, where), "model", where)
            model = model[frame.centres]
        yield ReadForces(where, frame, atoms, oracle[frame.centres], model)


def _take_forces(atoms: Any, key: str, forces: Any, whose: str, where: str) -> NDArray[np.float64]:
    if forces is None or not np.isfinite(forces).all():
        raise SourceError(
            f"{where} needs {key} (the {whose}'s): three finite numbers, in eV/Å, for each atom. "
            + ("--lammps or --calculator computes them, in verbs that have these options. " if whose == "model" else "")
            + name_what_is_there(atoms)
        )
    taken: NDArray[np.float64] = np.asarray(forces)
    return taken


def read_labelled(source: str | os.PathLike[str], **how: Any) -> Iterator[Any]:
    """Iterate over the frames of a file as ``ase.Atoms`` with labels, which each frame must have.

    Parameters
    ----------
    source
        As in `read_frames`.
    how
        Keywords of `Reading`.

    Yields
    ------
    ase.Atoms
        Its calculator holds energy and forces, and the stress if the file has it.

    Raises
    ------
    SourceError
        As `read_frames`; or a frame has no energy or no forces, or one of them is no such thing.
    """
    reading = Reading(**how)
    keys = {"energy": reading.energy_key, "forces": reading.forces_key, "stress": reading.stress_key}
    for count, (_, atoms, _) in enumerate(read_all(source, **how)):
        where = f"{source}: frame {count}"
        labels = {name: find_label(atoms, name, key, where) for name, key in keys.items()}
        missing = [keys[name] or name for name in ("energy", "forces") if labels[name] is None]
        if keys["stress"] is not None and labels["stress"] is None:
            missing.append(keys["stress"])
        if missing:
            raise SourceError(
                f"{where} has no label: {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing. "
                f"{name_what_is_there(atoms)}"
            )
        yield set_labels(atoms, {name: value for name, value in labels.items() if value is not None})


# -- own descriptors, and where data came from -------------------------------------------------------------------------


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


def name_source(source: Mapping[str, Any]) -> str:
    """Return a line about what `describe_source` returned; or a loop, a live reference or a user has noted instead."""
    if "file" not in source:
        return ", ".join(f"{key} {value}" for key, value in source.items())
    return f"{source['file']}" + (f"@{source['selection']}" if "selection" in source else "")


def _split(source: str | os.PathLike[str]) -> tuple[Path, str]:
    text = os.fspath(source)
    path, selection = (text, ":") if Path(text).exists() or "@" not in text else text.rsplit("@", 1)
    if not Path(path).is_file():
        raise SourceError(f"{path}: no such file")
    if not _SELECTION.fullmatch(selection):
        raise SourceError(f"{text}: {selection!r} is not a slice such as @0:100:2 or @-1")
    return Path(path), selection


# -- reading -----------------------------------------------------------------------------------------------------------


def read_all(source: str | os.PathLike[str], group_key: str | None = None, **how: Any) -> Iterator[ReadFrame]:
    """Iterate over the frames of a file: each as a `Frame`, as ``ase.Atoms``, and as text.

    Parameters
    ----------
    source, group_key, how
        As in `read_frames`.

    Raises
    ------
    SourceError
        As `read_frames`.
    """
    reading = Reading(**how)
    path, selection = _split(source)
    count = 0
    try:
        for atoms, written in _iterate(path, selection, reading):
            where = f"{path}: frame {count}"
            group = _read_group(atoms, group_key, where)
            try:
                frame = to_frame(atoms, count, group)
            except FrameError as error:  # else the message would blame ASE
                raise SourceError(f"{where}: {error}") from error
            yield ReadFrame(frame, atoms, written)
            count += 1
    except SourceError:
        raise
    except Exception as error:
        # ASE's readers raise many types of exceptions, even those of sqlite3.
        what = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path}: ASE cannot read it after {count} frames: {what}") from error
    if count == 0:
        raise SourceError(f"{path}: no frames in it (selection {selection!r})")


def _iterate(path: Path, selection: str, reading: Reading) -> Iterator[tuple[Any, FrameText | None]]:
    """Iterate over the selected frames as ``ase.Atoms``, each with its text if the file is extended XYZ."""
    import ase.io
    import ase.io.formats

    name, keywords = _find_format(path, reading.format)
    if name == "extxyz" and not keywords:
        yield from _iterate_texts(path, selection, reading.elements or ())
        return
    types = LammpsTypes(path, name, reading.elements or ())
    # parallel=False, because one rank may read alone: with mpi4py imported, ASE's reading is collective otherwise.
    options = {"parallel": False, "do_not_split_by_at_sign": True, "format": name, **keywords}
    if ase.io.formats.ioformats[name].single and selection not in (":", "0", "-1"):
        raise SourceError(f"{path}: a file of the format {name} holds one frame: leave @{selection} out")
    images = ase.io.iread(path, index=selection, **options)
    if name == LAMMPS_DUMP:
        images = give_ids(images, _take(read_ids(path), selection), path, keywords.get("order", True))
    for atoms in images:
        yield types.name_elements(atoms), None


def _find_format(path: Path, asked: str | None) -> tuple[str, dict[str, Any]]:
    """Return ASE's name of the format of a file, and keywords of its reader."""
    import ase.io.formats

    name, _, options = (asked or "").partition(":")
    if name and name not in ase.io.formats.ioformats:
        raise SourceError(f"{path}: ASE knows no format {name!r}; `ase info --formats` lists those that it knows")
    keywords = dict[str, Any]()
    for option in options.split(",") if options else ():
        key, equals, value = option.partition("=")
        if not (key.strip().isidentifier() and equals):
            raise SourceError(
                f"{path}: the options of a format are written NAME:KEY=VALUE,..., such as "
                f"lammps-data:atom_style=charge, not {asked!r}"
            )
        keywords[key.strip()] = _to_value(value.strip())
    found: str = name or (LAMMPS_DATA if is_lammps_data(path) else ase.io.formats.filetype(str(path)))
    if found not in ase.io.formats.ioformats:
        raise SourceError(
            f"{path}: ASE cannot read it after 0 frames: its format is not known: --format NAME names it, and "
            "`ase info --formats` lists the names"
        )
    return found, keywords


def _to_value(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _take(items: Iterator[T], selection: str) -> Iterable[T]:
    """Return the selected ones. As in ASE, the rest is not looked through if the selection says where it ends."""
    bounds = [int(part) if part else None for part in selection.split(":")]
    if len(bounds) == 1:
        bounds = [bounds[0], (bounds[0] or 0) + 1 or None]
    if min(bound or 0 for bound in bounds) < 0:  # counted from the end
        return list(items)[slice(*bounds)]
    return itertools.islice(items, *bounds)


def _iterate_texts(path: Path, selection: str, elements: Sequence[str]) -> Iterator[tuple[Any, FrameText]]:
    """Iterate over the selected frames of an extended XYZ file."""
    from ase.io.formats import open_with_compression

    with cast(BinaryIO, open_with_compression(str(path), "rb")) as file:
        places = list(_take(find_frames(file), selection))
        if ":" not in selection and not places:
            raise IndexError(f"there is no frame {selection}")
        for place in places:
            written = read_text(file, place)
            named = name_species(path, written, elements)
            yield _parse(named), named


_NEEDED = ("species", "Z", "pos", "move_mask")  # columns without which ASE makes no frame


def _parse(written: FrameText) -> Any:
    """Return a frame of an extended XYZ file as ASE reads it.

    ASE refuses a frame for what nobody may need: a stress of six numbers, a dipole that is a word, an integer of more
    than 32 bits. Then it reads the rest, and these become arrays and info: numbers if they are numbers, and else texts.
    """
    try:
        return _read_by_ase(written.text)
    except Exception as error:  # noqa: BLE001 - ASE raises many types
        refused = error
    try:
        return _read_leniently(written)
    except Exception:  # noqa: BLE001 - it is no frame: ASE said so first
        raise refused from None


def _read_by_ase(text: str) -> Any:
    import ase.io

    return ase.io.read(io.StringIO(text), index=0, format="extxyz", parallel=False)


def _read_leniently(written: FrameText) -> Any:
    keys = {key: value for key, value, _ in written.words if key not in ("Lattice", "Properties", "pbc")}
    others = [name for name, *_ in written.columns if name not in _NEEDED]
    atoms = _read_by_ase(b"".join(written.format(without={*keys, *others})).decode("utf-8", "surrogateescape"))
    columns, _ = written.take(np.arange(len(atoms)), _NEEDED)
    for name, (kind, words) in columns.items():
        atoms.arrays[name] = _to_array(words if words.shape[1] > 1 else words[:, 0], kind)
    for key, value in keys.items():
        values = [_to_value(word) for word in value.split()] or [value]
        is_text = any(isinstance(one, str) for one in values)
        atoms.info[key] = value if is_text else values[0] if len(values) == 1 else np.array(values)
    labels: dict[str, Any] = {}
    for name, place in (("energy", atoms.info), ("forces", atoms.arrays), ("stress", atoms.info)):
        with contextlib.suppress(SourceError):
            labels |= {} if find_label(atoms, name) is None else {name: find_label(atoms, name)}
            place.pop(name, None)
    return set_labels(atoms, labels) if labels else atoms


def _to_array(words: NDArray[Any], kind: str) -> NDArray[Any]:
    """Return a column of words as numbers or truth values, or as it is."""
    with contextlib.suppress(ValueError, OverflowError):
        if kind == "L":
            return np.isin(words, ["T", "True"])
        return words.astype(str).astype({"I": np.int64, "R": np.float64, "S": object}[kind])
    return words


# -- from ase.Atoms to a frame -----------------------------------------------------------------------------------------


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
    forces = atoms.arrays.get(MODEL_FORCES)
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
