"""What a watched run writes, and reading it."""

from .reader import Run, read_run

__all__ = ["Run", "read_run"]
