"""The index file, format 1: data only, no pickle.

::

    magic (8 bytes) | length of the header (8, little-endian) | SHA-256 of the header (32)
    | header (JSON, UTF-8) | sections, each on a multiple of 64 bytes

The header lists the sections (type, shape, offset, SHA-256) and the size of the file. Opening checks the size and all
hashes, then what `_verification` knows of an index. Stepwise migrations will read older formats; newer formats are
refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS
from ..errors import IndexFileError, InputError
from ..files import write_atomically
from ..information import check_bandwidth
from ._build import arrange
from ._data import HASHED, IndexData, fingerprint
from ._header import is_count
from ._mapped import MappedFile, State, read_state
from ._parts import limit_layout
from ._residuals import Residuals, check_several, fingerprint_residuals, read_entries
from ._thresholds import Calibration
from ._verification import check_provenance, check_rows, check_sections

__all__ = ["open_index", "save_index", "verify_index"]

T = TypeVar("T", bound=IndexData)

FORMAT = 1
MAGIC = b"QUESTSMD"
_ALIGN = 64
_PREFIX = len(MAGIC) + 8 + 32
_MOST_HEADER = 1 << 28  # bytes; nothing longer than this is a header
_CHUNK = 1 << 20  # bytes that are read and hashed at a time
_SETTLED = 2_000_000_000  # ns; within a file's last two seconds, a change may leave its time as it is
_REMEDY = "restore the file from a copy, or build the index again"

# name: (dtype, number of dimensions)
SECTIONS: dict[str, tuple[str, int]] = {
    "rows": ("<f4", 2),
    "centre": ("<f8", 1),
    "frame_offsets": ("<i8", 1),
    "numbers": ("<i2", 1),
    "pair_distances": ("<f4", 2),
}
# The search tree. A file of an early version has none of these, and its rows are in the order of the frames.
TREE: dict[str, tuple[str, int]] = {
    "order": ("<i4", 1),
    "node_centres": ("<f4", 2),
    "node_radius": ("<f4", 1),
    "node_spread": ("<f4", 1),
}
# The residuals of potentials. Most files have none.
RESIDUALS: dict[str, tuple[str, int]] = {"residuals": ("<f4", 2)}
_KNOWN = SECTIONS | TREE | RESIDUALS
_WHOLE = (set(SECTIONS), set(SECTIONS | TREE), set(_KNOWN))  # the sections that a file can have


# -- writing -----------------------------------------------------------------------------------------------------------


def save_index(index: IndexData, path: Path) -> None:
    """Write an index to a file, as `Index.save` says; its `path` and `hash` are then those of the file."""
    header = {
        "spec": {k: value for k, value in asdict(index.descriptor).items() if (k, value) != ("elements", None)},
        "bandwidth": index.bandwidth,
        "elements": list(index.elements),
        "generation": index.generation,
        "provenance": index.provenance,
        "frame_groups": list(index.frame_groups),
        "calibration": None if index.calibration is None else index.calibration.to_json(),
    }
    kept = SECTIONS | TREE
    arrays = {name: np.ascontiguousarray(getattr(index, name), dtype=dtype) for name, (dtype, _) in kept.items()}
    if index.residuals:
        check_several(index.residuals, len(index))
        header["residuals"] = [one.to_json() for one in index.residuals]
        arrays["residuals"] = np.array([one.values for one in index.residuals], RESIDUALS["residuals"][0])
    # A file that cannot be opened again is not written.
    check_provenance(index.provenance, index.generation)
    check_sections(index.descriptor, header | {"calibration": index.calibration}, arrays)
    with index.reading():  # so the hashes are those of rows that were verified
        digests = {name: hashlib.sha256(array.data).hexdigest() for name, array in arrays.items()}
    table, offset = {}, 0
    for name, array in arrays.items():
        table[name] = {
            "dtype": _KNOWN[name][0],
            "shape": list(array.shape),
            "offset": offset,  # from the first section
            "sha256": digests[name],
        }
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    text = json.dumps({"format": FORMAT, **header, "sections": table, "data_bytes": offset}).encode()
    text += b" " * (-(_PREFIX + len(text)) % _ALIGN)
    digest = hashlib.sha256(text)

    def write(file: BinaryIO) -> None:
        file.write(MAGIC + len(text).to_bytes(8, "little") + digest.digest() + text)
        for array in arrays.values():
            file.write(array.data)
            file.write(b"\0" * (-array.nbytes % _ALIGN))

    write_atomically(path, write)
    index.path, index.hash = path, digest.hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------------

# What was verified in this process: files whose rows stay mapped, and the hash of their header. Such a file takes some
# time to verify; a small one is read anew each time, and verified as it is read.
_VERIFIED: dict[State, str] = {}


def open_index(kind: type[T], path: Path) -> T:
    """Open and verify an index file, as `Index.open` says."""
    return _open(kind, path, _VERIFIED)


def verify_index(path: Path) -> None:
    """Raise `IndexFileError` unless every section has its checksum and holds what it must."""
    _open(IndexData, path, {})


def _open(kind: type[T], path: Path, verified: dict[State, str]) -> T:
    try:
        with open(path, "rb") as file:
            state = read_state(file.fileno())
            header, start = _read_header(path, file, state.size)
            is_known = verified.get(state) == header["hash"]
            sections, mapped = _read_sections(path, file, start, header, is_known)
            if read_state(file.fileno()) != state:
                raise IndexFileError(f"{path}: changed while it was read: replace an index, never overwrite it")
    except FileNotFoundError:
        raise IndexFileError(f"{path}: no such index") from None
    except OSError as error:
        raise IndexFileError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        index = _make_index(kind, path, header, sections)
        _check_local_bound(path, header, index)
        if not is_known:
            check_rows(index)
    except InputError as error:
        raise IndexFileError(f"{path}: damaged: {error}: {_REMEDY}") from None
    index.mapped = mapped
    if mapped is not None and time.time_ns() - state.changed > _SETTLED:
        verified[state] = header["hash"]
    return index


def _make_index(kind: type[T], path: Path, header: dict[str, Any], sections: dict[str, NDArray[Any]]) -> T:
    descriptor = _read_descriptor(header)
    check_sections(descriptor, header, sections)
    if "order" not in sections:
        sections |= arrange(sections["rows"], sections["numbers"], descriptor.by_centre, 1)._asdict()
    sections["rows"].flags.writeable = False
    pairs = zip(header.get("residuals", ()), sections.pop("residuals", ()), strict=True)
    return kind(
        descriptor=descriptor,
        bandwidth=header["bandwidth"],
        elements=tuple(header["elements"]),
        generation=header["generation"],
        provenance=header["provenance"],
        path=path,
        hash=header["hash"],
        frame_groups=tuple(header.get("frame_groups", ())),
        calibration=header.get("calibration"),
        residuals=tuple(Residuals(**entry, values=values) for entry, values in pairs),
        **sections,
    )


def _read_sections(
    path: Path, file: BinaryIO, start: int, header: dict[str, Any], is_known: bool
) -> tuple[dict[str, NDArray[Any]], MappedFile | None]:
    """Read the sections, and compare them with their checksums. The rows of a large index are not read but mapped.

    Memory that was read stays as it is, whatever becomes of the file. But each rank of a run has its own.
    """
    sections: dict[str, NDArray[Any]] = {}
    mapped = None
    for name, entry in header["sections"].items():
        shape, first = tuple(entry["shape"]), start + entry["offset"]
        if 0 in shape and (name, shape) != ("pair_distances", (0, 0)):  # own descriptors know no elements
            raise IndexFileError(f"{path}: section {name} is empty: an index needs at least one environment")
        size = math.prod(shape) * np.dtype(entry["dtype"]).itemsize
        if name == "rows" and "order" in header["sections"] and shape[0] > limit_layout(shape[1]):
            mapped = MappedFile(path, file.fileno(), first, size, entry["sha256"])
            is_right = is_known or mapped.hash() == entry["sha256"]
            sections[name] = mapped.map(entry["dtype"], shape)
        else:
            sections[name] = np.empty(shape, entry["dtype"])
            is_right = _read_hashed(file, first, sections[name]) == entry["sha256"]
        if not is_right:
            raise IndexFileError(f"{path}: section {name} is damaged (its checksum differs): {_REMEDY}")
    return sections, mapped


def _read_hashed(file: BinaryIO, first: int, out: NDArray[Any]) -> str:
    """Read an array at this place, and return the hash of what was read: less than the array if the file ends."""
    digest = hashlib.sha256()
    if out.size:
        file.seek(first)
        view = out.data.cast("B")
        for begin in range(0, len(view), _CHUNK):
            part = view[begin : begin + _CHUNK]
            digest.update(part[: file.readinto(part)])  # type: ignore[attr-defined] # all of it, unless the file ends
    return digest.hexdigest()


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Return the header, with its "hash", and the offset of the first section, from a file of `size` bytes."""
    prefix = file.read(_PREFIX)
    if not prefix.startswith(MAGIC):
        raise IndexFileError(f"{path}: not an index; make one with: quests-md index build FILE -o NAME.qindex")
    length = int.from_bytes(prefix[8:16], "little")
    if len(prefix) < _PREFIX or length > min(size, _MOST_HEADER):
        raise IndexFileError(f"{path}: truncated or damaged: the file ends inside the header: {_REMEDY}")
    text = file.read(length)
    digest = hashlib.sha256(text)
    if len(text) < length or digest.digest() != prefix[16:]:
        raise IndexFileError(f"{path}: truncated or damaged: the header's checksum differs: {_REMEDY}")
    try:
        header = json.loads(text)
        number = header["format"]
        if not is_count(number) or number < 1:
            raise ValueError(f"format {number!r}")
        if number > FORMAT:
            raise IndexFileError(f"{path}: format {number} is newer than format {FORMAT}: upgrade quests_md to read it")
        _check_header(header)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise IndexFileError(f"{path}: the header is malformed: {what}: {_REMEDY}") from error
    expected = _PREFIX + length + header["data_bytes"]
    if size != expected:
        raise IndexFileError(f"{path}: {size} bytes, but the header says {expected}: truncated or damaged: {_REMEDY}")
    header["hash"] = digest.hexdigest()
    _check_bound(path, header)
    return header, _PREFIX + length


def _check_header(header: dict[str, Any]) -> None:
    """Raise `ValueError`, `KeyError` or `TypeError` for a header that is not ours. Files may be hostile."""
    descriptor = _read_descriptor(header)
    if not isinstance(header["bandwidth"], float):
        raise ValueError(f"bandwidth {header['bandwidth']!r}")
    check_bandwidth(header["bandwidth"])
    if not is_count(header["generation"]):
        raise ValueError(f"generation {header['generation']!r}")
    check_provenance(header["provenance"], header["generation"])
    if not isinstance(header["elements"], list) or not all(isinstance(e, str) for e in header["elements"]):
        raise ValueError(f"elements {header['elements']!r}")
    if not isinstance(header["sections"], dict) or set(header["sections"]) not in _WHOLE:
        raise ValueError("sections")
    if bool(read_entries(header.get("residuals", []))) != ("residuals" in header["sections"]):
        raise ValueError("residuals")
    groups = header.get("frame_groups", [])
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise ValueError("frame_groups")
    if header.get("calibration") is not None:
        symbols = SYMBOLS[:1] if isinstance(descriptor, OwnDescriptors) else SYMBOLS[1:]
        header["calibration"] = Calibration.from_json(header["calibration"], symbols)
    if not is_count(header["data_bytes"]):
        raise ValueError(f"data_bytes {header['data_bytes']!r}")
    for name, entry in header["sections"].items():
        dtype, dimensions = _KNOWN[name]
        shape, offset = entry["shape"], entry["offset"]
        whole = all(is_count(n) for n in [*shape, offset]) and isinstance(entry["sha256"], str)
        if entry["dtype"] != dtype or len(shape) != dimensions or not whole or offset % _ALIGN:
            raise ValueError(f"section {name}")
        if offset + math.prod(shape) * np.dtype(dtype).itemsize > header["data_bytes"]:
            raise ValueError(f"section {name} reaches past the end")


def _check_bound(path: Path, header: dict[str, Any]) -> None:
    """Raise `IndexFileError` if the bound of the force error was fitted to other references."""
    bound = header["calibration"].force_error if header.get("calibration") else None
    if bound is None:
        return
    if bound.reference != _fingerprint(header):
        raise IndexFileError(
            f"{path}: its bound of the force error was fitted to other references or another generation: "
            "build the index again, and calibrate it with --errors"
        )


def _check_local_bound(path: Path, header: dict[str, Any], index: IndexData) -> None:
    """Raise `IndexFileError` if the bound from local residuals was fitted to other references or residuals."""
    bound = index.calibration.local_error if index.calibration else None
    if bound is None:
        return
    mine = [one for one in index.residuals if (one.name, one.fingerprint) == (bound.potential, bound.fingerprint)]
    if mine and bound.reference == fingerprint_residuals(_fingerprint(header), mine[0]):
        return
    raise IndexFileError(
        f"{path}: its bound from local residuals was fitted to other residuals, other references or another "
        "generation: build the index again, fill its residuals, and calibrate it"
    )


def _fingerprint(header: dict[str, Any]) -> str:
    digests = {name: header["sections"][name]["sha256"] for name in HASHED}
    return fingerprint(_read_descriptor(header), header["bandwidth"], header["generation"], digests)


def _read_descriptor(header: dict[str, Any]) -> DescriptorSpec | OwnDescriptors:
    """Return the descriptor of a header. Own descriptors have a name and a width."""
    spec = header["spec"]
    return OwnDescriptors(**spec) if "name" in spec else DescriptorSpec(**spec)
