"""The active-learning loop: explore, select, label, train, extend the index, and explore again."""

from __future__ import annotations

__all__: list[str] = []
