"""Draw steered.png: the largest dH, and how far the farthest atom is from where it began, against time."""

import ase.io
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from quests_md.recording import read_run

HOP = 0.65 * 3.615 / np.sqrt(2)  # Å: an atom that is farther from its site than this has left it

figure, (above, below) = plt.subplots(2, sharex=True, figsize=(6, 4.5), layout="constrained")
for name, folder, color in (("alone", "uq-alone", "tab:grey"), ("steered", "uq", "tab:orange")):
    run = read_run(folder)
    above.plot(run.rows["time"], run.rows["max"], color=color, label=name)
    frames = ase.io.read(f"{name}.dump", ":", format="lammps-dump-text")
    moved = np.array([atoms.positions - frames[0].positions for atoms in frames])
    moved -= moved.mean(axis=1, keepdims=True)  # a thermostat lets the crystal as a whole drift
    times = np.linspace(run.rows["time"][0], run.rows["time"][-1], len(frames))
    below.plot(times, np.linalg.norm(moved, axis=2).max(axis=1), color=color)
above.axhline(run.about["thresholds"]["select"]["Cu"], color="black", ls="--", lw=0.8)
above.set_ylabel("largest dH (nats)")
above.legend(loc="upper left")
below.axhline(HOP, color="black", ls=":", lw=0.8)
below.set_ylabel("largest displacement (Å)")
below.set_xlabel("time (ps)")
figure.savefig("steered.png", dpi=80)
