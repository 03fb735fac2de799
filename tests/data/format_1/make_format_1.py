"""How the folders beside this file were made, by version 0.1.0: it wrote what is format 1 of a run's folder.

``python make.py``, in an empty folder: `whole` is a run that nobody disturbed; `killed` is its folder as it was after
step 8, while an event went on; `ended` is a run that was closed there.
"""

import shutil

from ase.build import bulk

from quests_md import Frame, Index, Monitor, Session

# Å of rattling of the frame of each step.
SCALES = [0.05, 0.05, 0.07, 0.08, 0.05, 0.05, 0.10, 0.09, 0.13, 0.12, 0.15, 0.05, 0.05, 0.16, 0.17, 0.05]
CUT = 9  # frames of `killed` and `ended`
MONITOR = {"select": 2.0, "halt": 1e9, "consecutive": 2, "precision": "double", "threads": 1}
SESSION = {"history": 2, "after": 1, "novelty": True, "budget": 2, "cutout": {"radius": 2.0, "most": 1}}


def atoms_of(scale, seed):
    atoms = bulk("Cu", cubic=True) * (1, 1, 2)
    atoms.rattle(scale, seed=seed)
    return atoms


def frame_of(step):
    return Frame.from_atoms(atoms_of(SCALES[step], 10 + step), step, 0.001 * step)


def main():
    Index.build([atoms_of(0.05, seed) for seed in range(4)], threads=1).save("format_1_copper.qindex")
    for name, n in (("whole", len(SCALES)), ("ended", CUT)):
        with Session(Monitor(Index.open("format_1_copper.qindex"), **MONITOR), name, **SESSION) as session:
            for step in range(n):
                session.observe(frame_of(step))
                if name == "whole" and step == CUT - 1:
                    shutil.copytree(name, "killed")


if __name__ == "__main__":
    main()
