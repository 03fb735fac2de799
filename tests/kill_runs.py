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

    def watch(self, folder, first=0, at=None, told=None, until=None, **more):
        """Watch from frame `first` on; keep where each rank is in `at`, and in `told` the places of halts."""
        at = [first] * self.size if at is None else at
        options = {"select": 2.0, "halt": math.inf, "consecutive": 1, "precision": "double", **self.monitor}

        def work(comm):
            monitor = Monitor(self.reference(), comm=comm, threads=1, **options)
            with Session(monitor, folder, **{**self.session, **more}) as session:
                for place, (_, parts) in enumerate(self.shown[first:until], first):
                    at[comm.rank] = place
                    if session.observe(parts[comm.rank]).stop:
                        if told is not None and not comm.rank:
                            told.append(place)
                        session.acknowledge()
                at[comm.rank] = len(self.shown)

        with contextlib.redirect_stdout(io.StringIO()):
            results = [work(Serial())] if self.size == 1 else ranks.run(self.size, work)
        for result in results:
            if isinstance(result, Exception):
                raise result


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
        parts[0].positions[3] = np.nan
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


def differences(left, whole, select=None):
    """Return in words where what is left differs; dH that are not above `select`, where it is given, may be bounds."""
    said = [f"files {sorted(left['names'] ^ whole['names'])}"] if left["names"] != whole["names"] else []
    said += [f"{key}: {v}, not {whole['about'][key]}" for key, v in left["about"].items() if v != whole["about"][key]]
    said += _of_rows(left.get("rows", []), whole.get("rows", []))
    for name in ("events", "index"):
        if left.get(name) != whole.get(name):
            said.append(f"{name} {left.get(name)}, not {whole.get(name)}")
    for name in FRAMES:
        said += _of_frames(name, left[name], whole[name], select)
    return said


def _of_rows(rows, wanted):
    keys, others = ([_key_of(row) for row in each] for each in (rows, wanted))
    if keys != others:
        return [f"rows {keys}, not {others}"]
    said = []
    for key, row, other in zip(keys, rows, wanted, strict=True):
        for name, value in row.items():
            near = name in ("novelty", "excess") and math.isclose(float(value), float(other[name]), abs_tol=1e-9)
            if value != other[name] and not near:
                said.append(f"row {key}: {name} {value}, not {other[name]}")
    return said


def _key_of(of):
    return f"{of['run']}:{of['step']}:{of.get('repeat', 0)}"


def _of_frames(name, text, wanted, select):
    if text == wanted:
        return []
    frames, others = (ase.io.read(io.StringIO(each.decode()), ":", "extxyz") if each else [] for each in (text, wanted))
    keys, other_keys = ([_key_of(atoms.info) for atoms in each] for each in (frames, others))
    if keys != other_keys:
        return [f"{name} {keys}, not {other_keys}"]
    said = []
    for key, atoms, other in zip(keys, frames, others, strict=True):
        if atoms.info != other.info:
            pairs = {k: (atoms.info.get(k), other.info.get(k)) for k in {*atoms.info, *other.info}}
            said.append(f"{name} {key}: {[(k, a, b) for k, (a, b) in pairs.items() if a != b]}")
        for column, values in other.arrays.items():
            if column not in atoms.arrays or not _is_near(atoms.arrays[column], values, select, column):
                said.append(f"{name} {key}: {column}")
        if not np.array_equal(atoms.cell, other.cell):
            said.append(f"{name} {key}: cell")
    return said


def _is_near(values, wanted, select, column):
    if values.dtype.kind != "f":
        return np.array_equal(values, wanted)
    near = np.isclose(values, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
    if column == "dH" and select is not None:
        near |= (values <= select) & (wanted <= select)
    return bool(near.all())
