"""What all tests of the command line share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let verbs say nothing of their progress: on a busy machine any of them may take longer than they keep quiet."""
    monkeypatch.setenv("QUESTS_MD_PROGRESS", "off")
