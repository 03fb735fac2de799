"""The only wiring: configuration, index, monitor, selection and sinks make a watched run with its files."""

from ._hooks import HOOKS
from ._live import reference_of
from ._session import Session

__all__ = ["HOOKS", "Session", "reference_of"]
