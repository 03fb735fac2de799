"""The index file, format 1: data only, no pickle.

::

    magic (8 bytes) | length of the header (8, little-endian) | SHA-256 of the header (32)
    | header (JSON, UTF-8) | sections, each on a multiple of 64 bytes

The header lists the sections (type, shape, offset, SHA-256) and the size of the file. `open_index` checks the header's
hash, every number in it, and the size; `verify_index` also hashes the sections. Stepwise migrations will read older
formats; newer formats are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec, OwnDescriptors
from ..elements import SYMBOLS
from ..errors import IndexFileError, InputError
from ..files import write_atomically
from ..kernels.search import levels
from ._build import arrange, measure_tree
from ._data import HASHED, IndexData, find_parts, fingerprint
from ._thresholds import Calibration, is_count

__all__ = ["open_index", "save_index", "verify_index"]

T = TypeVar("T", bound=IndexData)

FORMAT = 1
MAGIC = b"QUESTSMD"
_ALIGN = 64
_PREFIX = len(MAGIC) + 8 + 32
_MOST_HEADER = 1 << 28  # bytes; nothing longer than this is a header

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
_KNOWN = SECTIONS | TREE


# -- writing -----------------------------------------------------------------------------------------------------------


def save_index(index: IndexData, path: Path) -> None:
    """Write an index to a file, atomically; its `path` and `hash` are then those of the file."""
    header = {
        "spec": {k: value for k, value in asdict(index.descriptor).items() if (k, value) != ("elements", None)},
        "bandwidth": index.bandwidth,
        "elements": list(index.elements),
        "generation": index.generation,
        "provenance": index.provenance,
        "frame_groups": list(index.frame_groups),
        "calibration": None if index.calibration is None else index.calibration.to_json(),
    }
    arrays = {name: np.ascontiguousarray(getattr(index, name), dtype=dtype) for name, (dtype, _) in _KNOWN.items()}
    table, offset = {}, 0
    for name, array in arrays.items():
        table[name] = {
            "dtype": _KNOWN[name][0],
            "shape": list(array.shape),
            "offset": offset,  # from the first section
            "sha256": hashlib.sha256(array.data).hexdigest(),
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


def open_index(kind: type[T], path: Path) -> T:
    """Open an index file, as `Index.open` says."""
    header, sections = _open_file(path)
    descriptor = _read_descriptor(header)
    if "order" not in sections:
        sections |= arrange(sections["rows"], sections["numbers"], descriptor.by_centre, None)._asdict()
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
        **sections,
    )


def _open_file(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the checked header, with its "hash", and read-only maps of the sections."""
    header, start = _read_header(path)
    sections: dict[str, NDArray[Any]] = {}
    for name, entry in header["sections"].items():
        shape = tuple(entry["shape"])
        if shape == (0, 0) and name == "pair_distances":  # own descriptors know no elements
            sections[name] = np.empty(shape, np.float32)
            continue
        if 0 in shape:
            raise IndexFileError(f"{path}: section {name} is empty: an index needs at least one environment")
        sections[name] = np.memmap(path, entry["dtype"], "r", start + entry["offset"], shape).view(np.ndarray)
    for name in sections.keys() - {"rows", "order"}:
        sections[name] = np.array(sections[name])  # small, or read as a whole anyway
    _check_content(path, header, sections)
    return header, sections


def verify_index(path: Path) -> None:
    """Raise `IndexFileError` unless every section has its checksum and holds what it must."""
    header, sections = _open_file(path)
    for name, entry in header["sections"].items():
        if hashlib.sha256(sections[name].data).hexdigest() != entry["sha256"]:
            raise IndexFileError(f"{path}: section {name} is damaged (its checksum differs): copy or build it again")
    if "order" in sections and (np.sort(sections["order"]) != np.arange(len(sections["order"]))).any():
        raise IndexFileError(f"{path}: section order does not name every row once: build it again")
    if not np.isfinite(sections["rows"]).all():
        raise IndexFileError(f"{path}: section rows holds values that are not finite: build it again")
    index = open_index(IndexData, path)
    trees = [(tree, measure_tree(tree.rows, None)) for _, tree in index.trees()]
    tiny = 1e-4 * index.bandwidth + 1e-6 * float(max(index.rows.max(), -index.rows.min()))
    for name, slack in (("centres", tiny), ("radius", tiny), ("spread", tiny**2)):
        if not all(np.allclose(getattr(kept, name), getattr(new, name), 1e-4, slack) for kept, new in trees):
            raise IndexFileError(f"{path}: section node_{name} is not that of the rows: build it again")


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and the offset of the first section."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_PREFIX)
            if not prefix.startswith(MAGIC):
                raise IndexFileError(f"{path}: not an index; make one with: quests-md index build FILE -o NAME.qindex")
            length = int.from_bytes(prefix[8:16], "little")
            if len(prefix) < _PREFIX or length > min(size, _MOST_HEADER):
                raise IndexFileError(f"{path}: truncated or damaged: the file ends inside the header")
            text = file.read(length)
    except FileNotFoundError:
        raise IndexFileError(f"{path}: no such index") from None
    except OSError as error:
        raise IndexFileError(f"{path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(text)
    if len(text) < length or digest.digest() != prefix[16:]:
        raise IndexFileError(f"{path}: truncated or damaged: the header's checksum differs")
    try:
        header = json.loads(text)
        number = header["format"]
        if not is_count(number) or number < 1:
            raise ValueError(f"format {number!r}")
        if number > FORMAT:
            raise IndexFileError(f"{path}: format {number} is newer than format {FORMAT}: upgrade quests_md to read it")
        _check_header(header)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IndexFileError(f"{path}: the header is malformed: {type(error).__name__}: {error}") from error
    expected = _PREFIX + length + header["data_bytes"]
    if size != expected:
        raise IndexFileError(f"{path}: {size} bytes, but the header says {expected}: truncated or damaged")
    header["hash"] = digest.hexdigest()
    _check_bound(path, header)
    return header, _PREFIX + length


def _check_header(header: dict[str, Any]) -> None:
    """Raise `ValueError`, `KeyError` or `TypeError` for a header that is not ours. Files may be hostile."""
    descriptor = _read_descriptor(header)
    h = header["bandwidth"]
    if not (isinstance(h, float) and math.isfinite(h) and h > 0):
        raise ValueError(f"bandwidth {h!r}")
    if not (is_count(header["generation"]) and isinstance(header["provenance"], dict)):
        raise ValueError("generation or provenance")
    if not isinstance(header["elements"], list) or not all(isinstance(e, str) for e in header["elements"]):
        raise ValueError(f"elements {header['elements']!r}")
    if not isinstance(header["sections"], dict) or set(header["sections"]) not in (set(SECTIONS), set(_KNOWN)):
        raise ValueError("sections")
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
    digests = {name: header["sections"][name]["sha256"] for name in HASHED}
    descriptor = _read_descriptor(header)
    if bound.reference != fingerprint(descriptor, header["bandwidth"], header["generation"], digests):
        raise IndexFileError(
            f"{path}: its bound of the force error was fitted to other references or another generation: "
            "build the index again, and calibrate it with --errors"
        )


def _read_descriptor(header: dict[str, Any]) -> DescriptorSpec | OwnDescriptors:
    """Return the descriptor of a header. Own descriptors have a name and a width."""
    spec = header["spec"]
    return OwnDescriptors(**spec) if "name" in spec else DescriptorSpec(**spec)


def _check_content(path: Path, header: dict[str, Any], sections: dict[str, NDArray[Any]]) -> None:
    """Raise `IndexFileError` unless the small sections fit the rows and each other."""
    n, width = sections["rows"].shape
    offsets, numbers = sections["frame_offsets"], sections["numbers"]
    try:
        descriptor = _read_descriptor(header)
        if width != descriptor.width - descriptor.by_centre or sections["centre"].shape != (width,):
            raise InputError("the width of the rows is not that of the descriptor")
        if not np.isfinite(sections["centre"]).all():
            raise InputError("the centre is not finite")
        if offsets[0] != 0 or offsets[-1] != n or (np.diff(offsets) < 0).any():
            raise InputError("the frame offsets do not divide the rows")
        _check_elements(descriptor, header["elements"], numbers, n)
        if len(header.get("frame_groups", ())) not in (0, len(offsets) - 1):
            raise InputError("the groups are not those of the frames")
        distances = sections["pair_distances"]
        if distances.shape != (len(header["elements"]),) * 2 or not (distances >= 0).all():
            raise InputError("the smallest distances are not those of pairs of elements")
        if "order" in sections:
            _check_tree(descriptor.by_centre, sections)
    except InputError as error:
        raise IndexFileError(f"{path}: damaged: {error}") from None


def _check_elements(
    descriptor: DescriptorSpec | OwnDescriptors, elements: list[str], numbers: NDArray[np.int16], n: int
) -> None:
    """Raise `InputError` unless the elements fit the descriptor and the `n` rows."""
    if isinstance(descriptor, OwnDescriptors):
        if elements or numbers.shape != (n,) or numbers.any():
            raise InputError("own descriptors have no elements")
        return
    if numbers.shape != (n,) or numbers.min() < 1 or numbers.max() >= len(SYMBOLS):
        raise InputError("the elements of the rows are not atomic numbers")
    if not {SYMBOLS[z] for z in np.unique(numbers)} <= set(elements) <= set(SYMBOLS[1:]):
        raise InputError("the list of elements is not that of the rows")
    if not set(elements) <= set(descriptor.elements or elements):
        raise InputError("the list of elements is not that of the descriptor")


def _check_tree(by_centre: bool, sections: dict[str, NDArray[Any]]) -> None:
    """Raise `InputError` unless the search trees fit the rows."""
    n, width = sections["rows"].shape
    if by_centre and (np.diff(sections["numbers"]) < 0).any():
        raise InputError("the rows are not in the order of their elements")
    parts = find_parts(sections["numbers"], by_centre).values()
    nodes = sum(int(levels(last - first)[-1]) for first, last in parts)
    shapes = {"order": (n,), "node_centres": (nodes, width), "node_radius": (nodes,), "node_spread": (nodes,)}
    if any(sections[name].shape != shape for name, shape in shapes.items()):
        raise InputError("the search tree is not one over these rows")
    if not np.isfinite(sections["node_centres"]).all():
        raise InputError("the search tree holds centres that are not finite")
    for name in ("node_radius", "node_spread"):
        if not (np.isfinite(sections[name]).all() and sections[name].min() >= 0):
            raise InputError(f"the search tree holds values of {name} that are no distances")
