"""Draw tensile.png: the stress, and dH, against the strain."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from quests_md.recording import read_run

run = read_run("uq")
rows = run.rows
select = run.about["thresholds"]["select"]["Cu"]
step, strain, stress = np.loadtxt("pull.txt").T

figure, (above, below) = plt.subplots(2, sharex=True, figsize=(6, 4.5), layout="constrained")
above.plot(100 * strain, stress, color="tab:blue")
above.set_ylabel("stress (GPa)")
pulled = rows[rows["run"] == rows["run"].max()]  # the steps began anew when the pull did
below.plot(100 * np.interp(pulled["step"], step, strain), pulled["max"], color="tab:orange")
below.axhline(select, color="black", ls="--", lw=0.8)
below.annotate("select: one false alarm in 100 frames", (0.0, select), (2, 3), textcoords="offset points", fontsize=8)
below.axvspan(0.0, 4.0, color="tab:green", alpha=0.12, lw=0)
below.annotate("in the reference", (0.1, 0.95), xycoords=("data", "axes fraction"), va="top", fontsize=8, color="green")
below.set_ylabel("largest dH (nats)")
below.set_xlabel("strain (%)")
figure.savefig("tensile.png", dpi=90)
