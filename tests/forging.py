"""Index files that somebody has changed: a header of other content, with the hash that belongs to it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck

from quests_md import Index
from quests_md.errors import IndexFileError

PREFIX = 48  # magic, length, hash


def header_of(content):  # and what follows it
    length = int.from_bytes(content[8:16], "little")
    return content[PREFIX : PREFIX + length], content[PREFIX + length :]


def forged(content, header):
    """Return the index with another header, whose hash is right."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size, digest = len(text).to_bytes(8, "little"), hashlib.sha256(text).digest()
    return b"".join([content[:8], size, digest, text, header_of(content)[1]])


def with_values(content, change):
    """Return an index whose sections `change` has written to, with checksums that are right."""
    text, values = header_of(content)
    header, values = json.loads(text), bytearray(values)
    arrays = {
        name: np.frombuffer(values, e["dtype"], int(np.prod(e["shape"])), e["offset"]).reshape(e["shape"])
        for name, e in header["sections"].items()
    }
    change(arrays)
    for name, array in arrays.items():
        header["sections"][name]["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    return forged(content, header)[: -len(values)] + bytes(values)


def refuse(path, action=Index.open, match=None):
    with pytest.raises(IndexFileError, match=match) as caught:
        action(path)
    assert str(caught.value).startswith(f"{path}: ")


REUSED = [HealthCheck.function_scoped_fixture]  # the folder


def forge(key, value):
    return lambda header: header | {key: value}


def forge_spec(key, value):
    return lambda header: header | {"spec": header["spec"] | {key: value}}


def forge_calibration(key, value, drop=False):
    """Return a change that adds a calibration of which one entry is wrong, or missing."""
    good = {"symbols": ["Si"], "sizes": [[8], [0]], "maxima": [[0.5], [None]], "force_error": None}
    good |= {"frames": 2, "groups": 2, "copies": 0, "correlation": 1.0, "redundancy": 0.0}
    changed = {k: v for k, v in (good | {key: value}).items() if not (drop and k == key)}
    return lambda header: header | {"calibration": changed}
