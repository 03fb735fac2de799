"""The reference and the session of most runs of ASE here."""

from __future__ import annotations

import pytest
from watched import build_index, sessions


@pytest.fixture(scope="module")
def index():
    return build_index()


@pytest.fixture
def session(index, tmp_path):
    yield from sessions(index, tmp_path)
