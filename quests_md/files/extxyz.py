"""Extended XYZ: frames as text, with 17 significant digits, and the text of others kept to the last letter.

ASE's own writer keeps 8 decimals, which changes dH by up to 1e-3. Its reader makes numbers and truth values of what
looks like them (1.10, 007, T), and drops what it does not know. So what is only passed on is passed on as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame

__all__ = [
    "Columns", "FrameText", "find_frames", "format_atoms", "format_columns", "format_frame", "format_parts",
    "format_properties", "read_text", "to_nine",
]  # fmt: skip

_ATOMS = 10_000  # atoms that are formatted at a time
# The letter of a column, by the kind of its values; ASE reads texts as objects.
_KINDS = {"b": "L", "i": "I", "u": "I", "f": "R", "U": "S", "O": "S"}

# Strings that need no quotes, because they do not look like a number or a truth value.
_WORD = re.compile(r"(?!(t|f|true|false|nan|inf|infinity)\Z)[a-z_][a-z0-9_.:-]*", re.ASCII | re.IGNORECASE)

_UNDECODED = "surrogateescape"  # bytes that are no UTF-8 go through unchanged
_FRAME = ("Lattice", "Properties", "pbc")  # keys that are part of the frame, and never info
_PLAIN = "species:S:1:pos:R:3"  # the columns of a frame that names none
_CLOSING = {"'": "'", '"': '"', "{": "}", "[": "]"}
# What stands in a column for an atom that the frame does not have, by the letter of the column.
_MISSING = {"R": "nan", "I": "-1", "S": "_", "L": "F"}
_MISSING_OF = {  # and of columns that ASE knows: what it takes for an atom that has none
    "move_mask": "T", "tags": "0", "momenta": "0.0", "initial_magmoms": "0.0", "initial_charges": "0.0",
    "masses": "1.008",
}  # fmt: skip


class Cells(NamedTuple):
    """A column as text: the letter of its kind, and the words (n, m) of the atoms."""

    kind: str
    words: NDArray[Any]


class Word(str):
    """A key and its value as they stand in a file; written as they are."""

    __slots__ = ()


Column = tuple[str, "NDArray[Any] | Cells"]
Columns = Mapping[str, "NDArray[Any] | Cells"]


def format_properties(columns: Sequence[Column]) -> str:
    """Return the value of the key ``Properties``, which names the columns: arrays (n,) or (n, m), or text."""
    return ":".join(f"{name}:{_find_kind(values)}" for name, values in columns)


def _find_kind(values: NDArray[Any] | Cells) -> str:
    """Return the letter of a column and its width, "R:3"."""
    if isinstance(values, Cells):
        return f"{values.kind}:{values.words.shape[1]}"
    return f"{_KINDS[values.dtype.kind]}:{values.shape[1] if values.ndim == 2 else 1}"


def format_columns(columns: Sequence[Column], keys: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the text of a frame in pieces, because the text of a large frame needs much memory.

    Parameters
    ----------
    columns
        Name and values, (n,) or (n, m), of each column; `format_properties` of them must be among the keys.
    keys
        Numbers, truth values, texts, arrays (written flat), and what JSON can hold; or words of a `FrameText`.
    """
    first_column = columns[0][1]
    n = len(first_column.words if isinstance(first_column, Cells) else first_column)
    yield (f"{n}\n" + " ".join(_format_words(keys)) + "\n").encode("utf-8", _UNDECODED)
    for first in range(0, n, _ATOMS):
        cells = [_format_column(values, first, first + _ATOMS) for _, values in columns]
        yield "".join(" ".join(row) + "\n" for row in zip(*cells, strict=True)).encode("utf-8", _UNDECODED)


def _format_words(keys: Mapping[str, Any]) -> list[str]:
    return [
        str(value) if isinstance(value, Word) else f"{_format_key(str(key))}={_format_value(value)}"
        for key, value in keys.items()
    ]


def format_atoms(atoms: Any) -> bytes:
    """Format an ``ase.Atoms``: all its arrays and info, what its calculator has, and which atoms are fixed.

    Nothing is calculated. Constraints are written as ASE's writer does: ``FixAtoms`` and ``FixCartesian``.
    """
    results = {} if atoms.calc is None else {name: value for name, value in atoms.calc.results.items() if _holds(value)}
    columns: list[Column] = [("species", np.array(atoms.get_chemical_symbols())), ("pos", atoms.positions)]
    arrays = {name: values for name, values in atoms.arrays.items() if name not in ("numbers", "positions")}
    per_atom = {name for name, value in results.items() if _is_per_atom(name, value, len(atoms))}
    arrays |= {name: np.asarray(results[name]) for name in results if name in per_atom}
    columns += [(name, _flatten(values)) for name, values in arrays.items()]
    free = _find_free(atoms)
    if not free.all() and "move_mask" not in arrays:
        columns.append(("move_mask", free))
    keys: dict[str, Any] = {"Lattice": np.asarray(atoms.cell)} if atoms.cell.any() else {}
    keys |= {"Properties": format_properties(columns), "pbc": np.asarray(atoms.pbc)}
    whole = {name: value for name, value in results.items() if name not in per_atom}
    keys |= {name: _to_readable(value) for name, value in whole.items() if name != "stress"}
    if "stress" in whole:
        keys["stress"] = to_nine(whole["stress"])
    info = {key: value for key, value in atoms.info.items() if key not in (*_FRAME, *keys)}
    keys |= {key: to_nine(value) if key == "virial" else _to_readable(value) for key, value in info.items()}
    return b"".join(format_columns(columns, keys))


def _holds(value: Any) -> bool:
    return value is not None and np.asarray(value).dtype.kind in "biufU"


def _is_per_atom(name: str, value: Any, n: int) -> bool:
    return name == "forces" or (np.ndim(value) > 0 and len(value) == n and name not in ("dipole", "stress"))


def _find_free(atoms: Any) -> NDArray[np.bool_]:
    """Return which atoms may move, (n,); or in which directions, (n, 3)."""
    free = np.ones((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        if type(constraint).__name__ == "FixAtoms":
            free[constraint.index] = False
        elif type(constraint).__name__ == "FixCartesian":  # its mask is true where an atom is fixed
            free[constraint.index] &= ~np.asarray(constraint.mask, dtype=bool)
    return free[:, 0] if (free == free[:, :1]).all() else free


def to_nine(value: Any) -> Any:
    """Return a stress or virial as the nine numbers that ASE reads under these names; anything else unchanged."""
    values = np.asarray(value)
    if values.shape == (6,) and values.dtype.kind in "if":
        xx, yy, zz, yz, xz, xy = values
        return np.array([xx, xy, xz, xy, yy, yz, xz, yz, zz])
    # ASE reads the nine numbers of a matrix column by column.
    is_matrix = values.size == 9 and values.dtype.kind in "if"
    return values.ravel(order="F") if is_matrix else _to_readable(value)


def format_frame(frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], columns: Columns | None = None) -> bytes:
    """Format a whole frame as extended XYZ.

    The columns are species, pos, id (number, if `columns` has an id of its own), dH, those of `columns`, and, if the
    frame has them, momenta (in ASE's units, with the standard masses, so that ``atoms.get_velocities()`` is right) and
    model_forces. The keys are Lattice if there is a cell, Origin if it is not zero, pbc, those of `info`, and
    model_energy. The names ``energy`` and ``forces`` are for the labels of an oracle.
    """
    return b"".join(format_parts(frame, dH, info, columns))


def format_parts(frame: Frame, dH: NDArray[np.float64], info: dict[str, Any], more: Columns | None) -> Iterator[bytes]:
    """Yield what `format_frame` returns in pieces, because the text of a large frame needs much memory."""
    # ase is imported here, and not at the top, so that `import quests_md` stays fast.
    from ase.data import atomic_masses, chemical_symbols

    columns: list[Column] = [("species", np.array(chemical_symbols)[frame.numbers])]
    name = next(name for name in ("id", "number", "our_id") if name not in (more or {}))
    columns += [("pos", frame.positions), (name, np.asarray(frame.ids)), ("dH", dH)]
    if frame.velocities is not None:
        columns.append(("momenta", frame.velocities * atomic_masses[frame.numbers][:, None]))
    if frame.forces is not None:
        columns.append(("model_forces", frame.forces))
    columns += (more or {}).items()
    keys: dict[str, Any] = {"Lattice": frame.cell} if np.any(frame.cell) else {}
    keys["Properties"] = format_properties(columns)
    if np.any(frame.origin):
        keys["Origin"] = frame.origin
    keys.update(pbc=frame.pbc, **info)
    if frame.energy is not None:
        keys["model_energy"] = frame.energy
    if frame.bias is not None:
        keys.update(bias_energy=frame.bias.energy, bias_force=frame.bias.largest)
    yield from format_columns(columns, keys)


def _flatten(values: NDArray[Any]) -> NDArray[Any]:
    return values if values.ndim <= 2 else values.reshape(len(values), -1)


def _to_readable(value: Any) -> Any:
    """Return info in a form that ASE reads back unchanged. ASE would change an array of one or of nine numbers."""
    if isinstance(value, np.ndarray) and (value.ndim != 1 or value.size in (0, 1, 9) or value.dtype.kind not in "bif"):
        return value.tolist()
    return value


def _format_column(column: NDArray[Any] | Cells, first: int, last: int) -> list[str]:
    """Return the words of some atoms in a column, one text for each atom."""
    if isinstance(column, Cells):
        return [" ".join(row) for row in column.words[first:last].tolist()]
    values = column[first:last]
    if values.dtype.kind == "b":
        values = np.where(values, "T", "F")
    # repr gives the shortest text that reads as the same double; on Python's numbers it is twice as fast as on numpy's.
    cell = repr if values.dtype.kind in "iuf" else _format_cell
    if values.ndim == 2:
        return [" ".join(map(cell, row)) for row in values.tolist()]
    return list(map(cell, values.tolist()))


def _format_cell(value: Any) -> str:
    return ("_".join(value.split()) or "_") if isinstance(value, str) else repr(value)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[\w.:-]+", key) else _quote(key)


def _format_value(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return '"' + " ".join(map(_format_value, value.ravel())) + '"'
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    if isinstance(value, bool):
        return "FT"[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    # ASE's own escape for values that it would not read back unchanged.
    return _quote("_JSON " + json.dumps(value if isinstance(value, (str, list, dict)) else str(value)))


def _quote(words: str) -> str:
    return '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- the text of a frame -----------------------------------------------------------------------------------------------


def find_frames(file: BinaryIO) -> Iterator[int]:
    """Yield the first byte of every frame up to a blank line; `ValueError` where no frame begins."""
    file.seek(0)
    first, line = 0, file.readline()
    while line.strip():
        try:
            n = int(line)
        except ValueError:
            raise ValueError(f"a frame begins with its number of atoms, not with {line[:40]!r}") from None
        for _ in range(n + 1):
            file.readline()
        yield first
        first, line = file.tell(), file.readline()
        while line.lstrip().startswith(b"VEC"):  # cell vectors as further lines
            first, line = file.tell(), file.readline()


def read_text(file: BinaryIO, first: int) -> FrameText:
    """Return the frame that begins at a byte; an incomplete one if the file ends in it."""
    file.seek(first)
    lines = [file.readline()]
    lines += [file.readline() for _ in range(int(lines[0]) + 1)]
    while (line := file.readline()).lstrip().startswith(b"VEC"):
        lines.append(line)
    text = b"".join(lines).decode("utf-8", _UNDECODED).replace("\r\n", "\n")
    return FrameText(text if text.endswith("\n") else text + "\n")


@dataclass(frozen=True)
class FrameText:
    """A frame as it stands in a file: what is not replaced is written to the last letter as it was.

    Parameters
    ----------
    text
        Its lines: the number of atoms, the keys, and the atoms.
    """

    text: str

    @cached_property
    def words(self) -> tuple[tuple[str, str, Word], ...]:
        """Every key of the second line, its value without quotes, and both as they stand there."""
        return tuple(_split_words(self._lines[1]))

    @cached_property
    def columns(self) -> tuple[tuple[str, str, int], ...]:
        """Name, kind and width of every column."""
        named = [value for key, value, _ in self.words if key == "Properties"]
        parts = (named[-1] if named else _PLAIN).split(":")
        return tuple(zip(parts[::3], parts[1::3], map(int, parts[2::3]), strict=True))

    @cached_property
    def _lines(self) -> list[str]:
        return self.text.split("\n")

    def format(
        self, columns: Columns | None = None, keys: Mapping[str, Any] | None = None, without: Collection[str] = ()
    ) -> Iterator[bytes]:
        """Yield the text in pieces, with more columns and keys, which replace those of their names.

        Parameters
        ----------
        columns, keys
            As `format_columns` takes them.
        without
            Names of columns and keys to leave out.
        """
        more, new = columns or {}, keys or {}
        old = {name for name, *_ in self.columns} | {key for key, *_ in self.words}
        if not more and not new and not old & set(without):
            yield self.text.encode("utf-8", _UNDECODED)
            return
        gone = {*more, *new, *without}
        kept = [(name, kind, width) for name, kind, width in self.columns if name not in gone]
        properties = ":".join(
            [f"{name}:{kind}:{width}" for name, kind, width in kept]
            + ([format_properties(list(more.items()))] if more else [])
        )
        named = f"Properties={_quote(properties) if ' ' in properties else properties}"
        # New keys come early: a quote that is not closed swallows all that stands after it.
        words = [str(word) for key, _, word in self.words if key not in {*gone, "Properties"}]
        lead = 1 if words and self.words[0][0] == "Lattice" and "Lattice" not in gone else 0
        lines = self._lines
        n = int(lines[0])
        head = [*words[:lead], named, *_format_words(new), *words[lead:]]
        yield (f"{lines[0]}\n" + " ".join(head) + "\n").encode("utf-8", _UNDECODED)
        places = self._find_places(name for name, *_ in kept)
        declared = sum(width for *_, width in self.columns)
        for first in range(0, n, _ATOMS):
            some = lines[2 + first : 2 + min(first + _ATOMS, n)]
            rows = [_pick(line, places, declared) for line in some]
            cells = [_format_column(values, first, first + len(some)) for values in more.values()]
            yield "".join(" ".join(row) + "\n" for row in zip(rows, *cells, strict=True)).encode("utf-8", _UNDECODED)
        yield "".join(f"{line}\n" for line in lines[2 + n :] if line).encode("utf-8", _UNDECODED)

    def take(self, rows: NDArray[np.int64], without: Collection[str]) -> tuple[dict[str, Cells], dict[str, Word]]:
        """Return columns of some atoms, and keys, all but those `without`. A row of -1 is an atom that is not there."""
        names = [(name, kind) for name, kind, _ in self.columns if name not in without]
        there = self._lines[2 : 2 + int(self._lines[0])]
        lines = [there[row].split() if row >= 0 else None for row in rows.tolist()]
        columns = {}
        for name, kind in names:
            places = self._find_places([name])
            missing = [_MISSING_OF.get(name, _MISSING[kind])] * len(places)
            cells = [missing if line is None else [line[i] for i in places] for line in lines]
            columns[name] = Cells(kind, np.array(cells, dtype=object).reshape(len(rows), len(places)))
        return columns, {key: word for key, _, word in self.words if key not in (*_FRAME, *without)}

    def _find_places(self, names: Collection[str] | Iterator[str]) -> list[int]:
        """Return which words of an atom's line are those of some columns."""
        wanted, places, first = set(names), list[int](), 0
        for name, _, width in self.columns:
            places += range(first, first + width) if name in wanted else ()
            first += width
        return places


def _pick(line: str, places: Sequence[int], declared: int) -> str:
    """Return some words of an atom's line; the line itself, if these are all that it has."""
    words = line.split()
    return line.rstrip() if len(places) == declared == len(words) else " ".join([words[i] for i in places])


def _split_words(line: str) -> list[tuple[str, str, Word]]:
    """Split the keys of a frame as ASE does: each key, its value without quotes, and both as they stand there."""
    found: list[tuple[int, int, list[str]]] = []  # first and last letter, and what stands between the signs =
    begun, quoted, closing, escaped = False, False, "", False
    for i, letter in enumerate(line):
        plain = not (escaped or closing)
        if plain and letter.isspace():
            # After a sign = the value may still come.
            begun = begun and not quoted and len(found[-1][2]) > 1 and not found[-1][2][-1]
            continue
        if not begun and not (plain and letter == "=" and found):
            found.append((i, i, [""]))
        begun = True
        first, _, parts = found[-1]
        found[-1] = first, i + 1, parts
        quoted = quoted and plain and letter != "="
        if escaped:
            parts[-1], escaped = parts[-1] + letter, False
        elif letter == "\\":
            escaped = True
        elif letter == closing:
            closing, quoted = "", True
        elif closing:
            parts[-1] += letter
        elif letter in _CLOSING:
            closing = _CLOSING[letter]
        elif letter == "=":
            parts.append("")
        else:
            parts[-1] += letter
    return [(parts[0], "=".join(parts[1:]), Word(line[first:last])) for first, last, parts in found]
