"""The evaluations of a run in the form of a model deviation, as DeePMD-kit writes it and DP-GEN reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, OutputError
from .reader import Run

__all__ = ["MEASURES", "format_model_deviation"]

# What stands in the place of the deviation of forces: the columns of its maximum and its mean.
MEASURES = {"dH": ("max", "mean"), "expected_error": ("expected_error", "")}
_NAMES = ("max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f")


def format_model_deviation(run: Run, measure: str = "dH") -> str:
    """Return the content of a model_devi.out: a line for each evaluated step of the last run in a folder.

    Parameters
    ----------
    run
        What `read_run` returns.
    measure
        "dH": the largest and the mean dH of the atoms, in nats. "expected_error": the largest expected force error, in
        eV/Å, which has the unit of a deviation; inf where an atom is beyond the calibration. What is not known is nan,
        and the virial's columns are 0.

    Raises
    ------
    InputError
        There is no such measure.
    OutputError
        The run has no evaluations, or none with expected errors.
    """
    if measure not in MEASURES:
        raise InputError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}")
    rows = run.rows
    if not len(rows):
        raise OutputError(f"{Path(run.folder) / 'monitor.csv'} has no evaluations")
    rows = rows[rows["run"] == rows["run"].max()]
    _, backwards = np.unique(rows["step"][::-1], return_index=True)  # of evaluations of one step the last one counts
    rows = rows[::-1][backwards]
    values = _take(rows, measure)
    if np.isnan(values[:, 0]).all():
        raise OutputError(
            f"{Path(run.folder) / 'monitor.csv'} has no expected errors: watch with an index that is calibrated for "
            "local residuals, or export dH"
        )
    lines = ["#" + f"{'step':>11}" + "".join(f"{name:>19}" for name in _NAMES)]
    for step, (largest, mean) in zip(rows["step"].tolist(), values.tolist(), strict=True):
        columns = (0.0, 0.0, 0.0, largest, float("nan"), mean)
        lines.append(f"{step:>12}" + "".join(f"{value:>19.6e}" for value in columns))
    return "\n".join(lines) + "\n"


def _take(rows: NDArray[np.void], measure: str) -> NDArray[np.float64]:
    """Return maximum and mean (n, 2) of a measure."""
    largest, mean = MEASURES[measure]
    values = np.full((len(rows), 2), np.nan)
    values[:, 0] = rows[largest]
    if mean:
        values[:, 1] = rows[mean]
    else:
        values[rows["n_outside"] > 0, 0] = np.inf
    return values
