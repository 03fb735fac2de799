"""Draw adatom.png: the largest dH, and the number of atoms above select, against time."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from quests_md.recording import read_run

run = read_run("uq")
rows = run.rows
select = run.about["thresholds"]["select"]["Cu"]

figure, (above, below) = plt.subplots(2, sharex=True, figsize=(6, 4.5), layout="constrained")
above.plot(rows["time"], rows["max"], color="tab:orange")
above.axhline(select, color="black", ls="--", lw=0.8)
above.set_ylim(-12, 45)
above.set_ylabel("largest dH (nats)")
below.plot(rows["time"], rows["n_select"], color="tab:blue")
below.set_ylabel("atoms above select")
below.set_xlabel("time (ps)")
for landed in rows["time"][1:][np.diff(rows["n"]) > 0]:
    above.axvline(landed, color="grey", lw=0.8)
    below.axvline(landed, color="grey", lw=0.8)
figure.savefig("adatom.png", dpi=90)
