"""The flags of the compiler and its cache, in this one place; and what is said while something compiles."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile

from ..machine import hold_interrupt

# Plain fastmath=True also promises "no inf, no nan". But the logarithm of an empty kernel sum, -inf, is an answer.
_FLAGS = {"nsz", "arcp", "contract", "afn", "reassoc"}
_ORDERED = {"nsz", "contract"}  # a product may be fused with a sum, but a sum keeps its order

# What compiling takes before a watched run: 20 s on a fast processor. `python -m benchmarks start` measures it.
_COMPILING = "half a minute, or a minute on a slow processor"
_ALL = "`quests-md warm-up` compiles all"
_DIGEST = 32  # bytes of the hash at the end of a file of compiled code
_kept = True  # whether a folder keeps the compiled code
_folder = ""  # which one


@lru_cache(maxsize=1)
def _stamp() -> str:
    """Return a short hash of all kernels."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def kernel(function: Callable[..., Any], flags: Collection[str] = _FLAGS) -> Any:
    """Compile `function`, and keep the machine code on disk if a folder is writable."""
    # numba names the kept code after the function. It checks whether the file of the function has changed, but not the
    # files of the kernels that it calls. With the hash of all of them in the name, old code never runs.
    function.__qualname__ += f"-{_stamp()}"
    made = numba.njit(nogil=True, fastmath=set(flags), error_model="numpy")(function)
    compile_it = made.compile

    def compile_whole(signature: Any) -> Any:
        with hold_interrupt(_tell_waiting):
            return compile_it(signature)

    made.compile = compile_whole
    global _folder, _kept
    try:
        made._cache = _Cache(function)
        if function.__module__.startswith(f"{__package__}."):  # else it is a kernel of a test
            _folder = made._cache.cache_path
    except RuntimeError as error:  # numba's word for "no writable folder for the cache"
        if "cannot cache" not in str(error):
            raise
        _kept = False
    return made


def ordered(function: Callable[..., Any]) -> Any:
    """Compile `function` as a kernel whose sums are made in the order in which they are written."""
    return kernel(function, _ORDERED)


def inlined(function: Callable[..., Any]) -> Any:
    """Make `function` part of the kernels that call it.

    This is for small functions with many arrays in a hot loop: a call counts references to each array, up and down.
    """
    return numba.njit(inline="always")(function)


def _tell_waiting() -> None:
    """Say that Ctrl-C was heard, and let another one end the program."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Whoever was interrupted may be in the middle of a print: this goes past its buffer.
    os.write(2, b"quests_md: will stop when the present function is compiled; Ctrl-C again ends the program at once\n")


# -- compiled code on disk ---------------------------------------------------------------------------------------------


class _Files(IndexDataCacheFile):  # type: ignore[misc] # numba has no types
    """Files of compiled code, one for each signature, each with a hash of what it holds.

    numba's own have numbers, which two processes that compile at once may give to different code; and a damaged one
    ends the program.
    """

    def save(self, key: Any, data: Any) -> None:
        content = self._dump(data)
        with self._open_for_write(self._data_path(self._find(key))) as file:
            file.write(content + hashlib.sha256(content).digest())

    def load(self, key: Any) -> Any:
        name = self._find(key)
        try:
            text = Path(self._data_path(name)).read_bytes()
            is_whole = hashlib.sha256(text[:-_DIGEST]).digest() == text[-_DIGEST:]
            return self._load_data(name) if is_whole else None  # which stops before the hash
        except OSError:
            return None

    def _find(self, key: Any) -> str:
        name = hashlib.sha256(repr((numba.__version__, key)).encode()).hexdigest()[:16]
        return str(Path(self._index_name).with_suffix(f".{name}.nbc"))


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's cache of a kernel. That a file cannot be read or written costs time, and nothing else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator, base = self._impl.locator, self._impl.filename_base
        self._cache_file = _Files(locator.get_cache_path(), base, locator.get_source_stamp())

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(f"{self.cache_path}: {error.strerror or error}")


@lru_cache(maxsize=1)
def _warn_once(why: str) -> None:
    print(f"quests_md: compiled code cannot be kept ({why}); NUMBA_CACHE_DIR can name a folder", file=sys.stderr)


def find_kept() -> tuple[str, int]:
    """Return the folder that keeps compiled code (empty: none is writable), and the number of its present files."""
    if not _kept or not _folder:
        return "", 0
    return _folder, len(list(Path(_folder).glob(f"*-{_stamp()}*.nbc")))


# -- what is said ------------------------------------------------------------------------------------------------------


class _Announcer(event.Listener):  # type: ignore[misc]
    """Says once that a kernel will be compiled. numba calls it when the cache has no code that fits."""

    def __init__(self) -> None:
        self._said = False

    def on_start(self, happening: Any) -> None:
        ours = happening.data["dispatcher"].py_func.__module__.startswith(f"{__package__}.")
        if not ours or self._said:
            return
        self._said = True
        text = f"compiling what this needs, once for this machine: {_COMPILING}; {_ALL} ..."
        if not _kept:
            text = f"compiling, {_COMPILING}; NUMBA_CACHE_DIR can name a folder that keeps the result ..."
        print(f"quests_md: {text}", file=sys.stderr, flush=True)

    def on_end(self, happening: Any) -> None:
        pass


@lru_cache(maxsize=1)
def announce_compiling() -> None:
    """From now on, say on stderr that a kernel has to be compiled. Say it once: kernels compile one after the other."""
    event.register("numba:compile", _Announcer())
