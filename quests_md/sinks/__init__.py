"""Where a run's rows and frames go."""

from ._csv import CsvSink
from ._extxyz import ExtxyzSink, format_frame
from ._folder import RunFolder
from ._jsonl import JsonLinesSink, json_value

__all__ = ["CsvSink", "ExtxyzSink", "JsonLinesSink", "RunFolder", "format_frame", "json_value"]
