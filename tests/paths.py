"""Where things are. Tests are in folders that mirror the rooms of the package; what they share is here, beside them."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
DOCS = ROOT / "docs"
DATA = TESTS / "data"
