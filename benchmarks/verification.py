"""Damaged and forged index files: none is used in silence, and what verifying costs when an index is opened.

Bits: one bit of each section is flipped, at random, and each question is asked of the file. Header: each value of the
header is replaced by values that cannot be, with a hash that is right. Content: so are values of each section. A trial
is right if the file is refused in words (`IndexFileError`), or if every answer is that of the good file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import bulk
from click.testing import CliRunner

from quests_md import DescriptorSpec, Index, cli
from quests_md.errors import IndexFileError
from quests_md.frame import Frame
from quests_md.index import Residuals, calibrate, fit_error_bound

from .printing import head, target
from .timing import seconds

PREFIX = 48  # bytes before the header
OPENED = (13_233, 1_000_000)  # environments of the timed indexes
WIDTH = 63
SEED = 1
HOSTILE: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, -1.5, 0, 0.0, 1e308, -1e308, 1e-320, 1 << 40, 1 << 63, 10**30, True, None,
    "", "X", "\x1b[2J", [], {}, [[]], [math.nan], {"a": 1},
)  # fmt: skip
NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e30, -1e30, 7.0)
COUNTS = (-1, 0, 1, 5, 1 << 14, -(1 << 15))


def main() -> None:
    """Try all kinds of damage, and time the opening."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--bits", type=int, default=40, help="flipped bits of each section (%(default)s); 0: times only"
    )
    parser.add_argument("--opened", type=int, nargs="*", default=OPENED, help="sizes of the timed indexes")
    options = parser.parse_args()
    head("Damaged and forged indexes; opening", "ase")
    with tempfile.TemporaryDirectory() as folder:
        if options.bits:
            print("  index        damage     trials   refused   same answers   wrong")
            tried = [_try_index(*one, Path(folder), options.bits) for one in _indexes()]
            target("damaged or forged files that gave another answer, or a raw error", sum(tried), 0, "")
        _time_opening(Path(folder), options.opened)


# -- the indexes -------------------------------------------------------------------------------------------------------


def _indexes() -> Iterator[tuple[str, Index, Any, Any]]:
    """Yield a name, an index, frames to ask about, and what to extend the index with."""
    silicon = Index.build([_silicon(0.03 + 0.01 * seed, seed) for seed in range(8)])
    silicon.calibration = calibrate(silicon)
    labelled = [(Frame.from_atoms(_silicon(0.08, 100 + i)), np.full(64, 0.01 * i)) for i in range(6)]
    bound = fit_error_bound(silicon, labelled, coverage=0.5)
    silicon.calibration = type(silicon.calibration)(**{**vars(silicon.calibration), "force_error": bound})
    yield "silicon", silicon, _silicon(0.08, 50), _silicon(0.08, 51)
    errors = np.random.default_rng(SEED).exponential(0.1, len(silicon))
    silicon = silicon.with_residuals(Residuals("SNAP", "ab" * 32, "training", errors))
    yield "extended", silicon.extend([_silicon(0.1, 60)]), _silicon(0.08, 50), _silicon(0.08, 51)
    alloy = Index.build([_alloy(seed) for seed in range(8)], DescriptorSpec(species="neighbours"), bandwidth=0.05)
    alloy.calibration = calibrate(alloy)
    yield "alloy", alloy, _alloy(50), _alloy(51)
    rows = np.random.default_rng(SEED).normal(1.0, 0.1, (600, 8))
    offsets = np.arange(0, 601, 60)
    own = Index.from_descriptors(rows[:480], 0.05, frame_offsets=offsets[:9])
    own.calibration = calibrate(own)
    yield "own", own, rows[480:540], rows[540:]


def _silicon(scale: float, seed: int) -> Any:
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.rattle(scale, seed=seed)
    return atoms


def _alloy(seed: int) -> Any:
    atoms = bulk("Cu", "bcc", a=3.3, cubic=True) * 3
    rng = np.random.default_rng(seed)
    atoms.set_chemical_symbols(rng.choice(["Cu", "Zr"], len(atoms), p=[0.7, 0.3]).tolist())
    atoms.rattle(0.15, rng=rng)
    return atoms


# -- what is asked -----------------------------------------------------------------------------------------------------


def _verbs(asked: Any, added: Any) -> dict[str, Callable[[Path], Any]]:
    """Return what a file is asked, by name; each returns an answer that can be compared."""

    def command(path: Path, *words: str) -> str:
        done = CliRunner().invoke(cli.main, ["index", *words[:1], str(path), *words[1:]])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if done.exit_code:
            raise IndexFileError(done.stderr)
        return ""  # what is told about a file is in its header

    def calibrated(path: Path) -> Any:
        return calibrate(Index.open(path), threads=1).maxima.tolist()

    def extended(path: Path) -> Any:
        return Index.open(path).extend(added, threads=1).delta_entropy(asked, 1).tolist()

    def saved(path: Path) -> Any:
        index = Index.open(path)
        index.save(path.with_suffix(".saved"))
        return Index.open(path.with_suffix(".saved")).delta_entropy(asked, 1).tolist()

    return {
        "dH": lambda path: Index.open(path).delta_entropy(asked, 1).tolist(),
        "exceeds": lambda path: [Index.open(path).exceeds(asked, t, 1).tolist() for t in (-2.0, 1.0, 10.0)],
        "extend": extended,
        "calibrate": calibrated,
        "save": saved,
        "verify": Index.verify,
        "info": lambda path: command(path, "info"),
        "info --json": lambda path: command(path, "info", "--json"),
    }


def _try_index(name: str, index: Index, asked: Any, added: Any, folder: Path, bits: int) -> int:
    """Try all damages of one index; print a row for each kind, and return how many were wrong."""
    path, verbs = folder / "trial.qindex", _verbs(asked, added)
    index.save(path)
    content = path.read_bytes()
    good = {verb: repr(ask(path)) for verb, ask in verbs.items()}
    wrong = 0
    damages = {"bits": _flip(content, bits), "header": _forge_header(content), "content": _forge_content(content)}
    for kind, files in damages.items():
        trials = refused = same = faults = 0
        for what, damaged in files:
            path.write_bytes(damaged)
            for verb, ask in verbs.items():
                trials += 1
                try:
                    answer = repr(ask(path))
                except IndexFileError:
                    refused += 1
                    continue
                except Exception as error:  # noqa: BLE001 # each is a fault, and is told
                    answer = repr(error)
                if kind != "bits" and answer == good[verb]:
                    same += 1
                else:
                    faults += 1
                    print(f"    WRONG {name}, {what}: {verb}: {answer[:100]}")
        print(f"  {name:<12} {kind:<10} {trials:>6} {refused:>9} {same:>14} {faults:>7}", flush=True)
        wrong += faults
    return wrong


# -- damages -----------------------------------------------------------------------------------------------------------


def _split(content: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(content[8:16], "little")
    return json.loads(content[PREFIX : PREFIX + length]), content[PREFIX + length :]


def _join(header: Any, values: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-(PREFIX + len(text)) % 64)
    return b"QUESTSMD" + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text + values


def _flip(content: bytes, bits: int) -> Iterator[tuple[str, bytes]]:
    header, values = _split(content)
    rng = np.random.default_rng(SEED)
    for name, entry in header["sections"].items():
        size = math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
        for _ in range(bits if size else 0):
            damaged = bytearray(values)
            place, bit = int(rng.integers(size)), int(rng.integers(8))
            damaged[entry["offset"] + place] ^= 1 << bit
            yield f"bit {bit} of byte {place} of {name}", content[: -len(values)] + bytes(damaged)


def _forge_header(content: bytes) -> Iterator[tuple[str, bytes]]:
    header, values = _split(content)
    for place in _places(header):
        for value in HOSTILE:
            changed = json.loads(json.dumps(header))
            inside = changed
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            yield f"{'.'.join(map(str, place))} = {value!r}", _join(changed, values)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where all values of a header are; of a list, the first and the last."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _places(inside, (*place, key))
    elif isinstance(value, list) and value:
        for i in sorted({0, len(value) - 1}):
            yield from _places(value[i], (*place, i))


def _forge_content(content: bytes) -> Iterator[tuple[str, bytes]]:
    header, values = _split(content)
    for name, entry in header["sections"].items():
        n = math.prod(entry["shape"])
        places = sorted({0, n // 2, n - 1}) if n else ()
        for place in places:
            for value in NUMBERS if entry["dtype"][1] == "f" else COUNTS:
                damaged, changed = bytearray(values), json.loads(json.dumps(header))
                array = np.frombuffer(damaged, entry["dtype"], n, entry["offset"])
                # Own descriptors may have any centre: such a file is that of other descriptors.
                if array[place] == value or (name == "centre" and not header["elements"] and abs(value) < 1e15):
                    continue
                array[place] = value
                changed["sections"][name]["sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
                yield f"{name}[{place}] = {value}", _join(changed, bytes(damaged))


# -- times -------------------------------------------------------------------------------------------------------------


def _time_opening(folder: Path, sizes: list[int]) -> None:
    """Print how long opening takes with and without verifying, one thread, the file in the system's cache."""
    import quests_md.index._file as file

    checks = file.check_rows  # type: ignore[attr-defined]
    rng = np.random.default_rng(SEED)
    print("\n  environments   file (MB)   open (ms)   of it rows and tree   again (ms)   processor (ms)")
    for n in sizes:
        rows = rng.normal(0.0, 0.02, (n, WIDTH)) + rng.normal(1.0, 0.1, (50, WIDTH))[rng.integers(50, size=n)]
        path = folder / f"{n}.qindex"
        Index.from_descriptors(rows, 0.015).save(path)
        del rows
        Index.verify(path)  # compiled, and in the cache of the system
        times, cpu, parts = [], [], []
        for _ in range(5):
            file._VERIFIED.clear()
            started = time.process_time()
            times.append(seconds(lambda path=path: Index.open(path)))
            cpu.append(time.process_time() - started)
            index = Index.open(path)
            parts.append(seconds(lambda index=index: checks(index)))
        time.sleep(2.1)  # a file that was written just now is not remembered
        Index.open(path)
        again = min(seconds(lambda path=path: Index.open(path)) for _ in range(5))
        size, best, part = path.stat().st_size / 1e6, 1e3 * min(times), 1e3 * min(parts)
        print(f"  {n:>12}{size:>12.1f}{best:>12.1f}{part:>22.1f}{1e3 * again:>13.1f}{1e3 * min(cpu):>17.1f}")
        if n >= OPENED[-1]:
            target(f"opening and verifying an index of {n} environments, time of the processor", min(cpu), 1.0, "s")
        path.unlink()


if __name__ == "__main__":
    main()
