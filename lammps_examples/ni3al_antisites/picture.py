"""Draw antisites.png: dH against time as the run saw it, and for a descriptor that does not tell elements apart.

The other index, blind.qindex, is of the same reference with --species ignore.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from quests_md import Index
from quests_md.recording import read_run
from quests_md.sources import read_frames

run = read_run("uq")
rows = run.rows
select = max(run.about["thresholds"]["select"].values())
blind = Index.open("blind.qindex")
frames = list(read_frames("run.dump"))
moved = [int((frame.numbers != frames[0].numbers).sum()) for frame in frames]
time = np.array([frame.step for frame in frames]) * 0.002

figure, axes = plt.subplots(3, sharex=True, figsize=(6, 5.5), layout="constrained")
axes[0].step(time, moved, where="post", color="tab:green")
axes[0].set_ylabel("antisites")
axes[1].plot(rows["time"], rows["max"], color="tab:orange")
axes[1].axhline(select, color="black", ls="--", lw=0.8)
axes[1].set_ylabel("largest dH,\nneighbours (nats)")
axes[2].plot(time, [blind.delta_entropy(frame).max() for frame in frames], color="tab:blue")
axes[2].axhline(blind.calibration.false_alarm(0.01, blind.calibration.typical)["Al"], color="black", ls="--", lw=0.8)
axes[2].set_ylabel("largest dH,\nignore (nats)")
axes[2].set_xlabel("time (ps)")
figure.savefig("antisites.png", dpi=90)
