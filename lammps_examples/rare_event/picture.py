"""Draw rare_event.png: the temperature, and dH, against time; events are shaded."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from quests_md.recording import read_run

run = read_run("uq")
rows = run.rows
select = run.about["thresholds"]["select"]["Si"]

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.plot(rows["time"], rows["max"], color="tab:orange", label="largest dH")
axes.plot(rows["time"], rows["q50"], color="grey", label="median")
axes.axhline(select, color="black", ls="--", lw=0.8, label="select")
axes.set_yscale("symlog", linthresh=10)
axes.set_xlabel("time (ps)")
axes.set_ylabel("dH (nats)")
for event in run.events:
    axes.axvspan(event["start_time"], event["end_time"], color="tab:red", alpha=0.12, lw=0)
axes.legend(frameon=False, fontsize=8)
figure.savefig("rare_event.png", dpi=90)
