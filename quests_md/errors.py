"""The tree of exceptions.

::

    QuestsError
    ├── InputError (ValueError)      an argument, a frame or a file's content that cannot be used
    │   ├── FrameError               a frame without descriptors: nan, no cell, atoms on top of each other
    │   ├── ElementError             an element that the index lacks, or that was not named
    │   ├── CalibrationError         a threshold that the calibration of an index cannot give
    │   ├── ConfigError              a wrong key or value in quests.toml
    │   ├── NucleationError          nuclei that classical nucleation theory cannot be fitted to
    │   └── SourceError              a file that cannot be read as frames
    ├── IndexFileError               a file that is no index, or a damaged, truncated or newer one
    ├── HostError                    the simulation cannot be watched as it is set up (ghost cutoff, units, ids)
    ├── OutputError                  the output folder cannot be used
    ├── MissingExtraError (ImportError)   an optional package is not installed
    ├── MonitorError                 watching failed during a run, on this rank or on another one
    ├── QueueError                   the database of a queue cannot be used, or a claim was lost
    ├── OracleError                  the oracle cannot be started, or no longer gives the labels it gave
    ├── TrainingError                no potential came out of a training
    ├── LearningError                the loop cannot go on: not covered, and nothing to learn from; or labels were lost
    └── Halted                       the run was told to stop: by a threshold, a signal or its wall time
"""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "ConfigError",
    "ElementError",
    "FrameError",
    "Halted",
    "HostError",
    "IndexFileError",
    "InputError",
    "LearningError",
    "MissingExtraError",
    "MonitorError",
    "NucleationError",
    "OracleError",
    "OutputError",
    "QuestsError",
    "QueueError",
    "SourceError",
    "TrainingError",
]


class QuestsError(Exception):
    """Base class of all errors that quests_md raises on purpose."""


class InputError(QuestsError, ValueError):
    """An argument or a file's content cannot be used."""


class FrameError(InputError):
    """A frame has no descriptors: nan positions, a singular cell, atoms on top of each other."""


class ElementError(InputError):
    """An element is unknown to the index, or was not named."""


class CalibrationError(InputError):
    """A calibration cannot be made, or cannot give the requested threshold; the message has the reason."""


class ConfigError(InputError):
    """A key or a value of the configuration is wrong."""


class NucleationError(InputError):
    """Classical nucleation theory cannot be fitted to these nuclei; the message has the reason."""


class SourceError(InputError):
    """A file cannot be read as frames."""


class IndexFileError(QuestsError):
    """A file is not an index, or it is damaged, truncated or of a newer format."""


class HostError(QuestsError):
    """The simulation cannot be watched as it is set up."""


class OutputError(QuestsError):
    """The output folder cannot be used."""


class MissingExtraError(QuestsError, ImportError):
    """An optional package is not installed; the message holds the pip line to type."""


class MonitorError(QuestsError):
    """Watching failed during a run, on this rank or on another one."""


class QueueError(QuestsError):
    """The database of a queue cannot be used, or a claim on a frame was lost."""


class OracleError(QuestsError):
    """The oracle cannot be started, or no longer gives the same labels as before."""


class TrainingError(QuestsError):
    """A training gave no potential; the message names its log."""


class LearningError(QuestsError):
    """The learning loop cannot go on: its explorations are not covered, but propose no frames to learn from."""


class Halted(QuestsError):
    """The run was told to stop: by a threshold, by a signal, or because its wall time was over."""
