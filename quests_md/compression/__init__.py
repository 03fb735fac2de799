"""Choosing few frames of a dataset that keep its information."""

from ._compression import METHODS, Compression, Growth, compress

__all__ = ["METHODS", "Compression", "Growth", "compress"]
