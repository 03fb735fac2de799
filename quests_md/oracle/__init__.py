"""Whatever supplies labels, and what is made of them: the queue, labelling, trainers."""

from __future__ import annotations

__all__: list[str] = []
