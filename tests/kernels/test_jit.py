"""The cache of compiled kernels: found again, never out of date, not needed; and who says that something compiles."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading

import numba
import pytest
import ranks
from numba.core import event
from paths import ROOT
from watched import build_index

from quests_md import Monitor
from quests_md.kernels.jit import announce_compiling

PACKAGE = ROOT / "quests_md"
# A few kernels that call each other, and are compiled in a second or two: exact sums take ten times as long.
CODE = """
import numpy as np
from quests_md.descriptors import minimum_distances
from quests_md.frame import Frame
from quests_md.kernels import neighbors
from quests_md.kernels.jit import announce_compiling
announce_compiling()
announce_compiling()
pair = Frame(np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]), np.array([14, 14]))
nearest = np.full((1, 1), np.inf)
minimum_distances(pair, 5.0, np.zeros(2, np.int64), nearest)
print(nearest[0, 0], sum(neighbors.minimum_distances.stats.cache_hits.values()))
"""


@pytest.fixture
def copy(tmp_path):
    """Return the root of a copy of the package, without anything compiled."""
    shutil.copytree(PACKAGE, tmp_path / "quests_md", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(root, **environment):
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr.splitlines()


def announces(lines, text="compiling what this needs, once for this machine:"):
    """Return whether all that was said on stderr is one line with this text."""
    return len(lines) == 1 and lines[0].startswith(f"quests_md: {text} half a minute")


def test_kernels_are_found_again_and_never_out_of_date(copy):
    cache = {"NUMBA_CACHE_DIR": str(copy / "cache")}
    values, said = run(copy, **cache)
    assert values == ["3.0", "0"]
    assert announces(said)
    assert run(copy, **cache) == (["3.0", "1"], [])
    # numba would notice a change of the same file only.
    other = copy / "quests_md" / "kernels" / "tally.py"
    other.write_text(other.read_text() + "\n# changed\n")
    values, said = run(copy, **cache)
    assert values == ["3.0", "0"]
    assert announces(said)


def test_no_writable_folder_is_not_fatal(copy):
    """A file where the folder of the cache should be: nobody, not even root, can write there."""
    (copy / "file").write_text("")
    pycache = copy / "quests_md" / "kernels" / "__pycache__"
    pycache.write_text("")
    where = str(copy / "file")
    values, said = run(copy, HOME=where, XDG_CACHE_HOME=where, NUMBA_CACHE_DIR="", PYTHONDONTWRITEBYTECODE="1")
    assert values == ["3.0", "0"]
    assert announces(said, "compiling,")
    assert "NUMBA_CACHE_DIR" in said[0]


SMALL = """
from quests_md.kernels.jit import kernel

@kernel
def double(x):
    return 2 * x
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads a kernel as a new program does."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small.py").write_text(SMALL)

    def load():
        sys.modules.pop("small", None)
        return importlib.import_module("small").double

    yield load
    sys.modules.pop("small", None)


def hits(double):
    assert double(21) == 42
    return sum(double.stats.cache_hits.values())


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:100], lambda data: data[:-40] + b"?" * 40])
def test_damaged_code_is_compiled_again(load, tmp_path, damage):
    assert [hits(load()), hits(load())] == [0, 1]
    (kept,) = (tmp_path / "cache").rglob("*.nbc")
    kept.write_bytes(damage(kept.read_bytes()))
    assert [hits(load()), hits(load())] == [0, 1]


def test_signatures_have_files_of_their_own(load, tmp_path):
    """Two processes that compile different ones at once must not write one file."""
    first, second = load(), load()
    assert (first(21), second(0.5)) == (42, 1.0)
    assert len(list((tmp_path / "cache").rglob("*.nbc"))) == 2
    double = load()
    assert (double(0.5), double(21), sum(double.stats.cache_hits.values())) == (1.0, 42, 2)


def test_a_full_disk_costs_no_more_than_time(load, tmp_path, capfd):
    double = load()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("in the way")
    assert hits(double) == 0
    assert "compiled code cannot be kept" in capfd.readouterr().err


def test_an_interrupt_while_something_compiles_is_not_lost(load, capfd):
    """Whoever catches everything would swallow it."""

    class Careless(event.Listener):
        def on_start(self, happening):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass

        def on_end(self, happening):
            pass

    double = load()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    careless = Careless()
    event.register("numba:compile", careless)
    try:
        with pytest.raises(KeyboardInterrupt):
            double(21)
    finally:
        event.unregister("numba:compile", careless)
        handler = signal.signal(signal.SIGINT, before)
    assert handler is signal.default_int_handler
    assert capfd.readouterr().err.startswith("quests_md: will stop when")
    assert hits(load()) == 1  # it was compiled all the same


def test_only_the_first_rank_announces(monkeypatch):
    asked, index = [], build_index()
    monkeypatch.setattr("quests_md.monitor._monitor.announce_compiling", lambda: asked.append(threading.get_ident()))

    def work(comm):
        Monitor(index, select=0.0, halt=1.0, comm=comm).warm_up()
        return threading.get_ident()

    first, *_ = ranks.run(3, work)
    assert asked == [first]


def test_kernels_of_others_are_not_announced(capfd):
    announce_compiling()
    numba.njit(lambda x: x + 1)(1)
    assert capfd.readouterr().err == ""


WATCHED = """
import pkgutil
from importlib import import_module

import numpy as np
from ase.build import bulk
from numba.core.dispatcher import Dispatcher

import quests_md.kernels
from quests_md import Frame, Index, Monitor, Session


def compiled():
    modules = [import_module(f"quests_md.kernels.{m.name}") for m in pkgutil.iter_modules(quests_md.kernels.__path__)]
    found = {id(thing): thing for module in modules for thing in vars(module).values() if isinstance(thing, Dispatcher)}
    return {thing.py_func.__qualname__: len(thing.signatures) for thing in found.values()}


def frame(step, scale):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=step)
    return Frame.from_atoms(atoms, step)


index = Index.build([frame(i, 0.02) for i in range(4)], threads=1)
for values in ("exact", "flagged"):
    with Session(Monitor(index, select=2.0, halt=1e6, consecutive=1, values=values), values) as session:
        before = compiled()
        for step in range(60):
            session.observe(frame(step, 0.02 + 0.002 * step))
        assert session.n_saved > 1, session.n_saved
        assert compiled() == before, (before, compiled())
assert sum(before.values()) > 5
"""


def test_nothing_is_compiled_once_a_run_has_begun(tmp_path):
    """A run would stand still for seconds."""
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
