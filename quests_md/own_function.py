"""A function of a frame that returns its own descriptors, in the place of a `DescriptorSpec`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .descriptors import OwnDescriptors, check_positions
from .errors import InputError, MonitorError
from .frame import Frame

__all__ = ["OwnEnvironments", "OwnFunction", "check_path", "import_function"]

_LONGEST = 1e15  # single precision squares distances up to 1e19


def check_path(path: str) -> None:
    """Raise `InputError` unless `path` is written as "module:function"."""
    module, colon, name = path.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise InputError(f'describe must be written as "module:function", not {path!r}')


def import_function(path: str) -> Callable[[Frame], Any]:
    """Import the function that "module:function" names. Modules in the working folder are found, too.

    Raises
    ------
    InputError
        There is no such module or function, importing the module fails, or it is no function.
    """
    check_path(path)
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # as `python -m` does; at the end, so that no file there hides an installed module
    try:
        found = import_module(module)
    except Exception as error:  # a module of the user may raise anything
        raise InputError(
            f"describe = {path!r}: {module} cannot be imported ({type(error).__name__}: {error}). It must be in the "
            "working folder, or in a folder that PYTHONPATH names"
        ) from error
    if not hasattr(found, name):
        known = [each for each, value in vars(found).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"describe = {path!r}: {module} has no {name!r}; it has {', '.join(known) or 'no function'}")
    function = getattr(found, name)
    if not callable(function):
        raise InputError(f"describe = {path!r} is no function, but {type(function).__name__}")
    return function  # type: ignore[no-any-return]


class OwnFunction(OwnDescriptors):
    """Own descriptors with the function that computes them of a frame.

    Parameters
    ----------
    name, width
        Those of `OwnDescriptors`.
    function
        It takes a `Frame` without ghosts and returns a row for each of its atoms.
    called
        What messages call the function.
    """

    function: Callable[[Frame], Any]
    called: str

    def __init__(self, name: str, width: int, function: Callable[[Frame], Any], called: str) -> None:
        super().__init__(name, width)
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "called", called)

    def check_elements(self, numbers: set[int]) -> None:
        """Do nothing: which elements there may be is up to the function."""

    def environments(self, frame: Frame, rows: NDArray[np.float64] | None = None) -> OwnEnvironments:
        """Return the environments of a frame; `rows`, if they are known already, are those of its watched atoms."""
        return OwnEnvironments(self, frame, rows)

    def compute_all(self, frame: Frame) -> NDArray[np.float64]:
        """Return the rows (n_local, d) of all atoms of a frame that is whole; nan where there is no atom.

        Raises
        ------
        FrameError
            Positions are not finite.
        MonitorError
            The function has failed, or what it returned is no array of finite numbers with a row for each atom.
        """
        check_positions(frame)
        whole = frame.bare()
        atoms = np.flatnonzero(whole.numbers)
        assert whole.ids is not None
        given = Frame(
            whole.positions[atoms],
            whole.numbers[atoms],
            whole.cell,
            whole.pbc,
            whole.ids[atoms],
            frame.step,
            frame.time,
        )
        where = f"step {frame.step}: describe = {self.called}"
        try:
            made = self.function(given)
        except Exception as error:
            raise MonitorError(f"{where} has failed: {type(error).__name__}: {error}") from error
        rows = np.full((len(whole.numbers), self.width), np.nan)
        rows[atoms] = self._check(made, len(atoms), where, whole.ids[atoms])
        return rows

    def _check(self, made: Any, n: int, where: str, ids: NDArray[Any]) -> NDArray[np.float64]:
        try:
            rows = np.asarray(made)
        except Exception as error:
            raise MonitorError(f"{where} returned no array, but {type(made).__name__} ({error})") from error
        expected = f"({n}, {self.width}): a row for each atom, with the columns of the index ({self.name})"
        if rows.dtype.kind not in "fiu":
            raise MonitorError(f"{where} returned {type(made).__name__} of {rows.dtype}, and not numbers {expected}")
        if rows.shape != (n, self.width):
            raise MonitorError(f"{where} returned the shape {rows.shape}, and not {expected}")
        bad = ~(np.abs(rows.astype(np.float64)) < _LONGEST).all(axis=1)
        if bad.any():
            first = ids[int(np.argmax(bad))]
            raise MonitorError(
                f"{where} returned values that are not finite, or beyond {_LONGEST:g}, for {int(bad.sum())} atoms "
                f"(the first is id {first})"
            )
        return rows.astype(np.float64)


class OwnEnvironments:
    """The environments of a frame whose rows a function computes. It is called once, for all of them.

    Parameters
    ----------
    spec
        The function.
    frame
        The frame; its arrays must stay until the first call of `compute`.
    rows
        (n, d) rows of the watched atoms, if they are known already.

    Attributes
    ----------
    centres
        The atoms (rows of the frame) whose environments these are, in order.
    """

    def __init__(self, spec: OwnFunction, frame: Frame, rows: NDArray[np.float64] | None = None) -> None:
        self.centres = frame.centres
        self._spec, self._frame, self._rows = spec, frame, rows

    def __len__(self) -> int:
        return len(self.centres)

    def compute(self, which: slice | NDArray[np.int64], threads: int | None = None) -> NDArray[np.float64]:
        """Return the rows (n, d) of the environments `which`; errors as in `OwnFunction.compute_all`."""
        if self._rows is None:
            self._rows = self._spec.compute_all(self._frame)[self.centres]
        return self._rows[which]

    def is_nearer(self, rows: NDArray[np.float64], r: float) -> NDArray[np.bool_]:
        """Return False for each row: own rows tell no distances, and the monitor has looked at those before."""
        return np.zeros(len(rows), bool)
