"""candidates.extxyz and cutouts.extxyz: the frames worth keeping, and cut-outs of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..descriptors import DescriptorSpec
from ..errors import InputError, OutputError
from ..frame import Frame
from ..index import Index, Live
from ..monitor import Above, Band, Decision, Key
from ..own_function import OwnFunction
from ..selection import SKIPPED, Kept, Selection, check_cutout, cutouts
from .past import Past
from .recorder import FrameFile, Moment, Place, Recorder, Whole, describe_key, to_quests_error

__all__ = ["Candidates"]

CANDIDATES, CUTOUTS = "candidates.extxyz", "cutouts.extxyz"


class Candidates(Recorder):
    """Decide which proposed frames are kept, and write them and their cut-outs.

    When a frame takes the place of another one, it is written before its row, and the other one is removed after it. So
    the rows always tell which frames must be in the file.

    Attributes
    ----------
    keys
        Keys of the kept frames, in order.
    """

    files = (CANDIDATES, CUTOUTS)

    def __init__(self, place: Place, novelty: bool, budget: int | None, cutout: Mapping[str, Any] | None) -> None:
        monitor = place.monitor
        self._place, self._cutout = place, cutout
        if cutout is not None:
            check_cutout(cutout, _find_cutoff(monitor.index.spec))
        self._selection: Selection | None = None
        if novelty:
            self._selection = Selection(monitor.index, budget=budget, comm=monitor.comm, threads=monitor.threads)
        elif budget is not None:
            raise InputError("budget needs novelty = true: it keeps the frames that add most")
        self.keys: list[Key] = []
        self._keys_of: dict[int, Key] = {}  # by the ordinal of each frame that the selection keeps
        self._base: dict[str, Any] | None = None  # the selection's state that rows of format 1 do not contain
        self._file = FrameFile(place.folder, CANDIDATES)
        self._cuts = FrameFile(place.folder, CUTOUTS)

    def warm_up(self) -> None:
        """Compile what deciding needs, before the run. Not collective."""
        if self._selection is not None:
            self._selection.warm_up()

    def judge(self, decision: Decision) -> Decision:
        """Return the decision on a frame that the monitor proposes, with the verdict of the selection.

        `save` is that of the verdict. If the frame is saved, all its dH are exact.
        """
        monitor = self._place.monitor
        if self._selection is not None and self._skips(self._selection, decision):
            decision = replace(decision, save=False, verdict="skipped", n_novel=SKIPPED)
        elif self._selection is not None:
            above = monitor.propose(decision)
            try:
                verdict = self._selection.consider(above, must=above.must, first=decision.begins)
            except Exception as error:
                raise to_quests_error(error, f"watching failed at step {decision.step}") from error
            decision = replace(
                decision,
                save=verdict.keep,
                verdict=verdict.reason,
                novelty=verdict.novelty,
                n_novel=verdict.n_novel,
                excess=verdict.excess,
                drops=verdict.drop,
            )
            if verdict.ordinal is not None:
                self._keys_of[verdict.ordinal] = decision.key
        if not decision.save:
            monitor.not_saved()
            return decision
        return monitor.complete(decision)

    def _skips(self, selection: Selection, decision: Decision) -> bool:
        """Return whether the selection need not see a frame: it is one of many that are alike."""
        if decision.begins or decision.band is Band.HALT:
            return False
        return selection.skips(decision.n_select, decision.maximum - self._place.monitor.thresholds.lowest)

    def see(self, moment: Moment) -> None:
        """Write a frame that is saved; after a broken frame, the last plausible one before it."""
        decision, added = moment.decision, list[Moment]()
        if decision.save:
            added += self.add(moment)
        if moment.proposed is not None and not moment.follows_broken:
            added += self.add(moment.proposed, reason=f"the last before {decision.reasons[0]}")
        if decision.drops is not None:
            moment.dropped = self._keys_of.pop(decision.drops)
        moment.candidates = tuple(added)

    def add(self, moment: Moment, **info: Any) -> list[Moment]:
        """Write a frame and its cut-outs, unless the file has it; return the moments that were written."""
        if moment.key in self.keys:
            return []
        whole = moment.whole(self._place.comm)

        def act() -> None:
            assert whole is not None
            self._file.append(moment.key, whole, {**moment.info(), **info})
            self._cut(moment.key, whole)

        self._place.on_root(act)
        self.keys.append(moment.key)
        return [moment]

    def settle(self, moment: Moment) -> None:
        """Remove the frame whose place was taken."""
        key = moment.dropped
        if key is None:
            return

        def act() -> None:
            self._file.remove(key)
            self._cuts.remove(key)

        self._place.on_root(act)
        self.keys.remove(key)

    def state(self) -> dict[str, Any]:
        """Return the part of the selection's state that the rows do not contain, if the run began in format 1."""
        return {} if self._base is None else {"base": self._base}

    def _cut(self, key: Key, whole: Whole) -> None:
        """Write cut-outs around the worst atoms of a frame."""
        thresholds = self._place.monitor.thresholds
        if self._cutout is None or thresholds.resolved is None or not math.isfinite(thresholds.lowest):
            return
        reference: object = self._place.monitor.index
        reference = reference.index if isinstance(reference, Live) else reference
        index = reference if isinstance(reference, Index) else None
        cutoff, threshold = _find_cutoff(self._place.monitor.index.spec), thresholds.lowest
        also = None
        if thresholds.has_limits:
            also = thresholds.is_above(0, whole.dH, whole.columns["force_error"], whole.frame.numbers)
        made = cutouts(whole.frame, whole.dH, cutoff, threshold=threshold, index=index, also=also, **self._cutout)
        for cut in made:
            self._cuts.append(key, Whole(cut.frame, cut.dH, {"core": cut.core}), {**describe_key(key), **cut.info})

    # -- resuming --------------------------------------------------------------------------------------------------

    def resume(self, past: Past) -> None:
        """Keep the frames that the rows name, and give the selection the frames that it keeps."""
        kept = self._find_kept(past) if self._selection is not None else {}
        self._keys_of = {one.ordinal: key for key, one in kept.items()}

        def mend() -> list[Key]:
            for file in (self._file, self._cuts):
                file.scan()
            dropped = {Key.parse(str(text)) for text in past.considered["dropped"] if text}
            stay = [p for p, key in enumerate(self._file.keys) if past.has_row(key) and key not in dropped]
            self._file.mend(stay)
            self._cuts.mend([p for p, key in enumerate(self._cuts.keys) if key in self._file.keys])
            missing = [str(key) for key in kept if key not in self._file.keys]
            if missing and past.format > 1:
                path = self._place.folder.path / CANDIDATES
                raise OutputError(
                    f"{path}: the frame {missing[0]} (run:step:repeat) is gone, but monitor.csv has its row"
                )
            return self._file.keys

        keys = self._place.comm.broadcast(self._place.on_root(mend))
        self.keys = list(keys)
        self._place.on_root(lambda: self._cut_again(past))
        if self._selection is not None:
            self._recall(past, kept)

    @staticmethod
    def _find_kept(past: Past) -> dict[Key, Kept]:
        """Return what the selection keeps, according to the rows."""
        kept: dict[Key, Kept] = {}
        following, base = 0, past.base
        if base is not None:
            following = base.selection.next
            by_ordinal = {one.ordinal: one for one in base.selection.kept}
            kept = {Key(*key): by_ordinal[n] for key, n in base.candidates if n is not None and n in by_ordinal}
        for row in past.considered[past.at_rows >= past.base_rows]:
            if row["dropped"]:
                kept.pop(Key.parse(str(row["dropped"])), None)
            if row["saved"]:
                key = Key(int(row["run"]), int(row["step"]), int(row["repeat"]))
                n_novel = row["n_novel" if past.format > 1 else "n_select"]  # format 1 has no n_novel
                kept[key] = Kept(following, key.step, float(n_novel), bool(row["band"] == "halt"))
                following += 1
        return kept

    def _cut_again(self, past: Past) -> None:
        """Write again the cut-outs of frames that have none, or may lack some."""
        if self._cutout is None:
            return
        for key, atoms in zip(list(self._file.keys), self._file.read(), strict=True):
            n = self._cuts.keys.count(key)
            # A broken frame proposed this one, and the program was killed before the broken frame had its row.
            is_doubtful = "reason" in atoms.info and key == past.last
            if n and not is_doubtful:
                continue
            self._cuts.remove(key)
            thresholds, dH, bound = self._place.monitor.thresholds, atoms.arrays["dH"], _bound_of(atoms)
            if thresholds.resolved is not None and thresholds.is_above(0, dH, bound, atoms.numbers).any():
                self._cut(key, Whole(_make_frame(atoms), dH, {} if bound is None else {"force_error": bound}))

    def _recall(self, past: Past, kept: dict[Key, Kept]) -> None:
        """Give the rows to the selection once more, and the frames that it keeps."""
        selection, rows = self._selection, past.considered[past.at_rows >= past.base_rows]
        assert selection is not None
        if past.base is not None:
            selection.restore(past.base.selection.model_dump())
        selection.recall(rows["n_novel"], rows["excess"], rows["saved"])
        if past.thresholds is not None:
            frames = self._file.read() if self._place.is_root else iter(())
            for key in self.keys:
                above = self._find_above(frames, past)
                if key in kept:
                    selection.add(above, kept[key])
        if past.base is not None:
            keys = [[str(key), one.ordinal] for key, one in kept.items() if key in self.keys]
            self._base = {"rows": past.rows, "selection": selection.state(), "candidates": keys}

    def _find_above(self, frames: Any, past: Past) -> Above:
        """Return the environments above `select` of the next saved frame, all of them on rank 0. Collective."""
        place, index = self._place, self._place.monitor.index
        thresholds = copy.copy(place.monitor.thresholds)
        if thresholds.resolved is None:  # the thresholds have changed, and no frame has settled the new ones yet
            thresholds.restore(past.thresholds or {"select": {"": np.inf}, "halt": {"": np.inf}})

        def find() -> Above:
            atoms = next(frames)
            dH, bound, frame = atoms.arrays["dH"], _bound_of(atoms), _make_frame(atoms)
            if not past.same:
                dH, bound = place.monitor.measure_all(frame)
            environments = index.spec.environments(frame)
            centres = environments.centres
            dH, numbers = dH[centres], frame.numbers[centres]
            bound = None if bound is None else bound[centres]
            select, above = thresholds.get(numbers)[0], np.flatnonzero(thresholds.is_above(0, dH, bound, numbers))
            ids = frame.ids[environments.centres[above]]  # type: ignore[index]

            def rows(which: Any) -> Any:
                return environments.compute(above[which], place.monitor.threads)

            scaled = thresholds.scale(0, dH, bound, numbers)
            return Above(frame.step, ids, scaled[above], np.asarray(select)[above], rows)

        found = place.on_root(find)
        if found is not None:
            return found
        nothing, width = np.empty(0), index.spec.width
        return Above(0, np.empty(0, np.int64), nothing, nothing, lambda which: np.empty((0, width)))


def _find_cutoff(spec: DescriptorSpec | OwnFunction) -> float:
    if isinstance(spec, OwnFunction):
        raise InputError(
            f"cutout needs the range of an environment, which own descriptors ({spec.name}) do not tell: leave cutout "
            "out, or watch with an index that was built of frames"
        )
    return spec.cutoff


def _bound_of(atoms: Any) -> NDArray[np.float64] | None:
    """Return the bound (n,) of the force errors in a saved frame, if it has one."""
    bound: NDArray[np.float64] | None = atoms.arrays.get("force_error")
    return bound


def _make_frame(atoms: Any) -> Frame:
    """Return a saved frame as it was when it was evaluated."""
    forces = atoms.arrays.get("model_forces")
    time = float(atoms.info.get("time", math.nan))
    return Frame.from_atoms(
        atoms, atoms.info["step"], time, ids=atoms.arrays["id"], watched=~np.isnan(atoms.arrays["dH"]), forces=forces
    )
