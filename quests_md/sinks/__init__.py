"""Where a run's rows and frames go."""

from ._csv import CsvSink
from ._extxyz import ExtxyzSink, format_frame
from ._folder import RunFolder

__all__ = ["CsvSink", "ExtxyzSink", "RunFolder", "format_frame"]
