"""The reference and the output folder of most watched runs here."""

from __future__ import annotations

import pytest
from watched import build_index


@pytest.fixture(scope="module")
def index():
    return build_index()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "uq"
