"""Files of LAMMPS: which elements its types are, if the file does not say it; and the ids of a dump."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import SourceError
from ..files.extxyz import FrameText

__all__ = ["LAMMPS_DATA", "LAMMPS_DUMP", "LammpsTypes", "give_ids", "is_lammps_data", "name_species", "read_ids"]

LAMMPS_DATA, LAMMPS_DUMP = "lammps-data", "lammps-dump-text"  # as ASE calls the formats
_DUMPS = (LAMMPS_DUMP, "lammps-dump-binary")
_PEEK = 4096  # bytes in which the header of a data file stands
_MASS_ERROR = 0.004  # relative; a mass of 1 is not that of hydrogen, 1.008, but that of Lennard-Jones units


def is_lammps_data(path: Path) -> bool:
    """Return whether a file begins as a data file of LAMMPS does. ASE knows only those whose first line says it."""
    from ase.io.formats import open_with_compression

    with cast(BinaryIO, open_with_compression(str(path), "rb")) as file:
        head = file.read(_PEEK)
    _, _, after = head.partition(b"\n")  # the first line is a comment
    return bool(re.search(rb"(?m)^[ \t]*\d+[ \t]+atoms\b", after) and re.search(rb"\bxlo[ \t]+xhi\b", after))


class LammpsTypes:
    """What the types of a LAMMPS file are. ASE takes them for atomic numbers if the file does not say it.

    Parameters
    ----------
    path, name
        The file, and its format.
    elements
        The symbols of the types, if the user has named them; they count more than what the file says.
    """

    def __init__(self, path: Path, name: str, elements: Sequence[str]) -> None:
        self._path, self._elements = path, tuple(elements)
        self._is_dump, self._is_data = name in _DUMPS, name == LAMMPS_DATA
        self._told: dict[int, str] = {}
        if elements:
            return
        if name == "lammps-dump-binary":
            _refuse(self._path, "a binary dump has types, and no elements")
        if name == LAMMPS_DUMP:
            self._check_columns()
        if self._is_data:
            self._told = _read_names(path)

    def name_elements(self, atoms: Any) -> Any:
        """Give atoms the elements of their types; `SourceError` if nobody has said what these are."""
        if self._is_dump and atoms.calc is not None:
            # ASE adds an energy of 0 to the forces of a dump.
            atoms.calc.results.pop("energy", None)
        if not (self._is_dump or self._is_data):
            return atoms
        types = atoms.arrays.get("type")
        if self._elements:
            if types is None:
                raise SourceError(f"{self._path}: elements name types of LAMMPS, and there is no column type in it")
            _set_elements(atoms, types, dict(enumerate(self._elements, 1)), self._path)
        elif self._told:
            _set_elements(atoms, types, self._told, self._path)
        elif self._is_data:
            self._check_masses(atoms)
        return atoms

    def _check_columns(self) -> None:
        """Raise `SourceError` if a frame of the dump has no column of elements."""
        from ase.io.formats import open_with_compression

        mark = b"ITEM: ATOMS"
        with cast(BinaryIO, open_with_compression(str(self._path), "rb")) as file:
            for line in file:
                if line.startswith(mark) and b"element" not in line.split():
                    _refuse(
                        self._path,
                        f"it has no column element, only {line[len(mark) :].decode(errors='replace').strip()}",
                    )

    def _check_masses(self, atoms: Any) -> None:
        """Raise `SourceError` if a mass is that of no element: ASE takes the nearest one, however far it is."""
        from ase.data import atomic_masses

        if "masses" not in atoms.arrays:
            _refuse(self._path, "it tells neither elements nor masses")
        masses, known = atoms.arrays["masses"], atomic_masses[atoms.numbers]
        far = ~(np.abs(masses - known) <= _MASS_ERROR * known)
        wrong = np.flatnonzero(far | (atoms.numbers == 0))  # ASE's X has a mass of 1
        if len(wrong):
            _refuse(self._path, f"a mass of {masses[wrong[0]]:g} is that of no element")


class DumpIds(NamedTuple):
    """The ids of a frame of a dump.

    Attributes
    ----------
    n_atoms
        Number of atoms that the frame should have.
    ids
        Those in the file, in its order; None if it has no column `id`.
    """

    n_atoms: int
    ids: NDArray[np.int64] | None


def give_ids(images: Iterable[Any], ids: Iterable[DumpIds], path: Path, is_sorted: bool) -> Iterator[Any]:
    """Give frames that ASE has read the ids of their atoms; `SourceError` if the file ends in the middle of one."""
    for count, (atoms, of_frame) in enumerate(zip(images, ids, strict=False)):
        if len(atoms) != of_frame.n_atoms:
            raise SourceError(f"{path}: frame {count} is cut off: it has {len(atoms)} of {of_frame.n_atoms} atoms")
        if of_frame.ids is not None:
            atoms.arrays["id"] = np.sort(of_frame.ids, kind="stable") if is_sorted else of_frame.ids
        yield atoms


def read_ids(path: Path) -> Iterator[DumpIds]:
    """Iterate over the frames of a text dump. ASE sorts the atoms by their ids, and then forgets these."""
    from ase.io.formats import open_with_compression

    count = 0
    with cast(BinaryIO, open_with_compression(str(path), "rb")) as file:
        for line in file:
            if line.startswith(b"ITEM: NUMBER OF ATOMS"):
                count = int(next(file))
            elif line.startswith(b"ITEM: ATOMS"):
                columns = line.split()[2:]
                rows = itertools.islice(file, count)
                place = columns.index(b"id") if b"id" in columns else None
                if place is None:
                    yield DumpIds(count, None)  # its rows begin with no ITEM, and are passed over
                else:
                    ids = (int(row.split(maxsplit=place + 1)[place]) for row in rows)
                    yield DumpIds(count, np.fromiter(ids, np.int64))


def name_species(path: Path, written: FrameText, elements: Sequence[str]) -> FrameText:
    """Return a frame of an XYZ file with the elements of its types, if LAMMPS has written types for species."""
    first = written.text.split("\n", 3)[2:3]
    if not (first and first[0].split()[:1] and first[0].split()[0].isdigit() and written.columns[0][0] == "species"):
        return written
    if not elements:
        _refuse(path, "it has numbers for species")
    species, _ = written.take(
        np.arange(int(written.text.split("\n", 1)[0])), [name for name, *_ in written.columns[1:]]
    )
    symbols = dict(enumerate(elements, 1))
    names = [_get_symbol(path, int(word), symbols) for (word,) in species["species"].words.tolist()]
    return FrameText(b"".join(written.format({"species": np.array(names)})).decode("utf-8", "surrogateescape"))


def _refuse(path: Path, why: str) -> NoReturn:
    raise SourceError(
        f"{path}: it does not say which elements its atoms are: {why}. Name the types of LAMMPS in their "
        'order: --elements Si C (elements = ["Si", "C"]); or have LAMMPS write them: dump_modify ID element Si C, '
        "and element among the columns of the dump"
    )


def _get_symbol(path: Path, of_type: int, symbols: Mapping[int, str]) -> str:
    if of_type not in symbols:
        raise SourceError(
            f"{path}: it has atoms of type {of_type}, and {len(symbols)} types are named: {', '.join(symbols.values())}"
        )
    return symbols[of_type]


def _set_elements(atoms: Any, types: NDArray[np.int64], symbols: Mapping[int, str], path: Path) -> None:
    velocities = atoms.get_velocities() if "momenta" in atoms.arrays else None
    atoms.numbers = np.array([SYMBOLS.index(_get_symbol(path, one, symbols)) for one in types.tolist()], dtype=int)
    if velocities is not None:  # ASE keeps momenta, and has made them with the masses of other elements
        atoms.set_velocities(velocities)


def _read_names(path: Path) -> dict[int, str]:
    """Return the symbols that a data file gives its types, as labels or as comments of masses; {} unless all are."""
    from ase.io.formats import open_with_compression

    found: dict[str, dict[int, str]] = {"Atom Type Labels": {}, "Masses": {}}
    section = ""
    with open_with_compression(str(path), "rt") as file:
        for line in file:
            words, _, comment = line.partition("#")
            fields = words.split()
            if fields[:1] == ["Atoms"]:
                break
            if words.strip() in found:
                section = words.strip()
            elif section and len(fields) == 2 and fields[0].isdigit():
                named = fields[1] if section == "Atom Type Labels" else (comment.split() or [""])[0]
                found[section][int(fields[0])] = named
            elif fields:
                section = ""
    whole = (names for names in found.values() if names and all(name in SYMBOLS for name in names.values()))
    return next(whole, {})
