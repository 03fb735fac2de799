"""Watched runs of a few frames, to be killed and resumed, and what is compared of what they leave."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import ase.io
import numpy as np
import ranks
from ase import Atoms
from calibrations import moving
from watched import atoms_of

from quests_md import Frame, Index, Monitor, Session
from quests_md.comm import Serial
from quests_md.errors import MonitorError
from quests_md.index import Live

# Rattling (Å) of frames: covered, above select more and more, and above halt.
COVERED, LITTLE, MUCH, MORE, HALTING = 0.05, 0.075, 0.10, 0.12, 0.2
BROKEN, EXPLODED = "broken", "exploded"
ABOUT = ("status", "reason", "evaluations", "flagged", "saved", "events", "last_step", "thresholds", "state")
FRAMES = ("candidates", "cutouts", "history", "implausible", "last")


@dataclass
class Run:
    """A run that a host shows frames, one after the other.

    Attributes
    ----------
    shown
        Step of each and the parts of all ranks.
    reference
        Returns what a session compares with.
    monitor, session
        Keywords.
    """

    shown: list[tuple[int, list[Frame]]]
    reference: Callable[[], Index | Live]
    monitor: dict
    session: dict
    values: str = field(init=False)

    def __post_init__(self):
        self.size, self.values = len(self.shown[0][1]), self.monitor.get("values", "exact")

    def begin_of(self, place):
        """Return where a host that has come to `place` may go on: at the first frame of a step, or one before.

        No restart is in the middle of a step; and that steps have gone backwards is to be seen by those before.
        """
        place = max(0, place)
        if place >= len(self.shown):
            return len(self.shown)
        while place and self.shown[place - 1][0] == self.shown[place][0]:
            place -= 1
        return self.begin_of(place - 1) if place and self.shown[place - 1][0] > self.shown[place][0] else place

    def watch(self, folder, first=0, at=None, told=None, comm=None, end=None, **more):
        """Watch from frame `first` on to `end`; keep where each rank is in `at`, and in `told` the places of halts.

        Ranks are threads, unless this is one of those of `comm`.
        """
        at = [first] * self.size if at is None else at
        options = {"select": 2.0, "halt": math.inf, "consecutive": 1, "precision": "double", **self.monitor}

        def work(comm):
            monitor = Monitor(self.reference(), comm=comm, threads=1, **options)
            with Session(monitor, folder, **{**self.session, **more}) as session:
                for place, (_, parts) in enumerate(self.shown[first:end], first):
                    at[comm.rank] = place
                    if session.observe(parts[comm.rank]).stop:
                        if told is not None and not comm.rank:
                            told.append(place)
                        session.acknowledge()
                at[comm.rank] = len(self.shown)

        with contextlib.redirect_stdout(io.StringIO()):
            results = ranks.run(self.size, work) if self.size > 1 and comm is None else [_tried(work, comm or Serial())]
        for result in results:
            # A broken frame ends a run that is not to go on.
            is_wanted = isinstance(result, MonitorError) and options.get("implausible") == "stop"
            if isinstance(result, Exception) and not is_wanted:
                raise result


def _tried(work, comm):
    try:
        return work(comm)
    except MonitorError as error:
        return error


# -- frames ------------------------------------------------------------------------------------------------------------


def copper_of(steps, kinds, size=1):
    """Return what is shown: copper that is rattled by so many Å, or frames that are broken."""
    shown = []
    for place, (step, kind) in enumerate(zip(steps, kinds, strict=True)):
        scale = kind if isinstance(kind, float) else COVERED
        atoms = atoms_of(scale, seed=100 + place)
        if kind == EXPLODED:
            atoms.set_cell(3 * atoms.cell, scale_atoms=True)
        elif scale < LITTLE:  # a cell that is not quite that of another frame
            atoms.set_cell((1.0 + 1e-6 * place) * atoms.cell, scale_atoms=True)
        shown.append((step, _parts_of(atoms, step, size, kind == BROKEN)))
    return shown


def silicon_of(steps, kinds, size=1):
    """Return silicon for a live reference: each frame is as hot as the others, hotter, or broken."""
    shown = []
    for place, (step, kind) in enumerate(zip(steps, kinds, strict=True)):
        (frame,) = moving(1, place, scale=kind if isinstance(kind, float) else 0.06)
        atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        shown.append((step, _parts_of(atoms, step, size, kind == BROKEN)))
    return shown


def _parts_of(atoms, step, size, is_broken):
    """Return a frame as each rank has it."""
    frame = Frame.from_atoms(atoms, step, 0.001 * step)
    parts = [frame]
    if size > 1:
        owners = np.arange(len(atoms)) % size
        parts = [ranks.part_of(atoms, frame, owners, rank) for rank in range(size)]
    for part in parts:
        part.time = frame.time
    if is_broken:
        parts[0].positions = parts[0].positions.copy()
        parts[0].positions[0] = np.nan  # the first atom, on any number of ranks
    return parts


# -- what they leave ---------------------------------------------------------------------------------------------------


def left_in(folder):
    """Return what a run has left in its folder, as far as it must be the same however often it was killed."""
    left = {"names": {path.name for path in folder.iterdir() if not path.name.startswith("resume.")}}
    about = json.loads((folder / "run.json").read_text())
    left["about"] = {key: about[key] for key in ABOUT}
    rows = folder / "monitor.csv"
    if rows.exists():
        with open(rows, newline="") as file:
            left["rows"] = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    events = folder / "events.jsonl"
    if events.exists():
        left["events"] = [json.loads(line) for line in events.read_text().splitlines()]
    for name in FRAMES:
        path = folder / f"{name}.extxyz"
        left[name] = path.read_bytes() if path.exists() else b""
    if (folder / "live.qindex").exists():
        index = Index.open(folder / "live.qindex")
        left["index"] = index.provenance["sources"], hashlib.sha256(index.rows.tobytes()).hexdigest()
    return left


def differences(left, whole, select=None, is_rounded=False):
    """Return in words where what is left differs.

    Parameters
    ----------
    select
        Where it is given, dH that are not above it may be bounds, which are not always the same.
    is_rounded
        All numbers may differ by rounding, as on another number of ranks; else only the novelty may.
    """
    said = [f"files {sorted(left['names'] ^ whole['names'])}"] if left["names"] != whole["names"] else []
    said += _unlike("run.json", left["about"], whole["about"], is_rounded)
    rows, others = left.get("rows", []), whole.get("rows", [])
    said += _unlike("rows", [_key_of(row) for row in rows], [_key_of(row) for row in others], False)
    for row, other in zip(rows, others, strict=False):
        for name, value in row.items():
            is_near = is_rounded or name in ("novelty", "excess")
            said += _unlike(f"row {_key_of(row)}: {name}", value, other[name], is_near)
    for name in ("events", "index"):
        said += _unlike(name, left.get(name), whole.get(name), is_rounded)
    for name in FRAMES:
        said += _of_frames(name, left[name], whole[name], select, is_rounded)
    return said


def _key_of(of):
    return f"{of['run']}:{of['step']}:{of.get('repeat', 0)}"


def _unlike(name, value, wanted, is_rounded):
    return [] if _is_same(value, wanted, is_rounded) else [f"{name} {value}, not {wanted}"]


def _is_same(value, wanted, is_rounded):
    """Return whether values are the same; texts may be of numbers, with a slash between them."""
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_is_same(value[k], wanted[k], is_rounded) for k in value)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_is_same, value, wanted, [is_rounded] * len(value)))
    if value == wanted or not is_rounded:
        return value == wanted
    if isinstance(value, str) and "/" in value:
        return _is_same(value.split("/"), wanted.split("/"), True)
    try:
        return math.isclose(float(value), float(wanted), rel_tol=1e-9, abs_tol=1e-9)
    except (TypeError, ValueError):
        return False


def _of_frames(name, text, wanted, select, is_rounded):
    if text == wanted:
        return []
    frames, others = (ase.io.read(io.StringIO(each.decode()), ":", "extxyz") if each else [] for each in (text, wanted))
    keys, other_keys = ([_key_of(atoms.info) for atoms in each] for each in (frames, others))
    said = _unlike(name, keys, other_keys, False)
    for key, atoms, other in zip(keys, frames, others, strict=False):
        said += _unlike(f"{name} {key}:", atoms.info, other.info, is_rounded)
        for column, values in other.arrays.items():
            if column not in atoms.arrays or not _is_near(atoms.arrays[column], values, select, column, is_rounded):
                said.append(f"{name} {key}: {column}")
        if not np.array_equal(atoms.cell, other.cell):
            said.append(f"{name} {key}: cell")
    return said


def _is_near(values, wanted, select, column, is_rounded):
    if values.shape != wanted.shape or values.dtype.kind != "f":
        return np.array_equal(values, wanted)
    # Cut-outs that are made once more are made of what was saved, in which momenta stand for velocities.
    margin = 1e-9 if is_rounded else 1e-12
    near = np.isclose(values, wanted, rtol=margin, atol=margin, equal_nan=True)
    if column == "dH" and select is not None:
        near |= (values <= select) & (wanted <= select)
    return bool(near.all())
