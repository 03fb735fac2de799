"""Draw old_dump.png: the largest dH, its 99 % quantile and its median, against the temperature of the old run."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from quests_md.recording import read_run

run = read_run("uq")
rows = run.rows
select = run.about["thresholds"]["select"]["Al"]
kelvin = 300 + 2100 * rows["step"] / rows["step"].max()  # in.old heats evenly

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(kelvin, rows["max"], color="tab:orange", label="largest")
axes.plot(kelvin, rows["q99"], color="tab:blue", label="99 %")
axes.plot(kelvin, rows["q50"], color="grey", label="median")
axes.axhline(select, color="black", ls="--", lw=0.8, label="select")
axes.axvspan(300, 700, color="tab:green", alpha=0.12, lw=0, label="reference")
axes.set_xlabel("temperature (K)")
axes.set_ylabel("dH (nats)")
axes.legend(frameon=False, ncols=3, fontsize=8)
figure.savefig("old_dump.png", dpi=90)
