"""Draw nucleation.png: the tension of the melt, and dH, against time."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from quests_md.recording import read_run

run = read_run("uq")
rows = run.rows
select = run.about["thresholds"]["select"]["Ag"]
step, tension = np.loadtxt("tension.txt").T

figure, (above, below) = plt.subplots(2, sharex=True, figsize=(6, 4.5), layout="constrained")
above.plot(0.004 * step, tension, color="tab:blue")
above.set_ylabel("tension (GPa)")
below.plot(rows["time"], rows["max"], color="tab:orange")
below.axhline(select, color="black", ls="--", lw=0.8)
below.set_ylabel("largest dH (nats)")
below.set_xlabel("time (ps)")
for event in run.events:
    for axes in (above, below):
        axes.axvspan(event["start_time"], event["end_time"], color="tab:red", alpha=0.12, lw=0)
figure.savefig("nucleation.png", dpi=90)
