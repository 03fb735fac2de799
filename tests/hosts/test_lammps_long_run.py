"""What a long watched run in LAMMPS leaves behind: events, the way into them, lost atoms, what it cost."""

from __future__ import annotations

import json

import ase.io
import pytest
from lammps_runs import (
    ATTACH,
    DEBIAN_2,
    HOSTS,
    HOSTS_ONCE,
    SILICON,
    WHEEL_1,
    configure,
    drive,
    ok,
    rows_of,
    run_host,
    run_json,
    script,
)

# An atom is pushed by a spring: dH of its environment rises, step by step, and falls when it is let go.
PUSH = """\
group one id 20
fix push one addforce 12.0 9.0 7.0
run 30
unfix push
run 60
"""
CLOSE = """\
python quests_close input 1 SELF format p exists
python quests_close invoke
"""


def events_of(folder):
    return [json.loads(line) for line in (folder / "uq" / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_an_event_and_the_way_into_it(host, folder):
    options = {
        "every": 2,
        "select": 8.0,
        "history": 4,
        "after": 2,
        "consecutive": 2,
        "novelty": True,
        "min_distance": 0.3,
    }
    configure(folder, **options)
    ok(run_host(host, folder, drive(PUSH), script(PUSH + CLOSE).replace("invoke 1 ", "invoke 2 ")))
    rows = rows_of(folder)
    above = [float(row["max"]) > 8.0 for row in rows]
    first = next(i for i in range(1, len(rows)) if above[i] and above[i - 1])
    assert [int(row["event"]) for row in rows[: first + 1]] == [0] * first + [1]
    event = events_of(folder)[0]
    assert (event["event"], event["start"]) == (1, int(rows[first - 1]["step"]))
    assert 20 in event["atoms"]
    history = [atoms.info["step"] for atoms in ase.io.read(folder / "uq" / "history.extxyz", ":")][:7]
    start = max(0, first - 4)
    assert history == [int(row["step"]) for row in rows[start : first + 3]]
    n_saved = sum(int(row["saved"]) for row in rows)
    n_flagged = sum(above)
    assert 1 <= n_saved < n_flagged
    assert len(ase.io.read(folder / "uq" / "candidates.extxyz", ":")) == n_saved
    log = (folder / "log.lammps").read_text()
    assert f" evaluations of 64 atoms, {n_saved} kept of {n_flagged} flagged frames" in log
    assert "us per atom and evaluation" in log
    assert run_json(folder)["status"] == "finished"


# An atom of the top layer flies out of a box that has a lid: LAMMPS loses it where it makes its lists anew.
LOSE = """\
thermo 1000
thermo_modify lost ignore
neigh_modify delay 0 every 1 check no
group one id 62
set group one vz 300
run 12
"""


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("implausible", ["stop", "continue"])
def test_lost_atoms_are_found(host, folder, implausible):
    configure(folder, implausible=implausible)
    box = SILICON.replace("units metal", "units metal\nboundary p p f")
    box = box.replace("region box block 0 2 0 2 0 2", "region box block 0 2 0 2 -0.5 2.2")
    box = box.replace("create_atoms 1 box", "region slab block 0 2 0 2 0 1.9\ncreate_atoms 1 region slab")
    code, text = drive(LOSE).replace(SILICON, box), script(LOSE).replace(SILICON, box)
    finished = run_host(host, folder, code, text)
    assert (finished.returncode == 0) == (implausible == "continue"), finished.stdout + finished.stderr
    assert implausible == "continue" or "1 of 64 atoms are lost" in finished.stdout + finished.stderr
    rows = rows_of(folder)
    broken = [row for row in rows if row["band"] == "implausible"]
    assert broken
    assert int(broken[0]["step"]) > 1
    saved = ase.io.read(folder / "uq" / "implausible.extxyz", ":")
    assert saved[0].info["reason"] == "1 of 64 atoms are lost"
    assert len(saved[0]) == 63
    run = run_json(folder)
    assert run["status"] == ("failed" if implausible == "stop" else "finished")
    # The last plausible frame is proposed in its place.
    (proposed,) = ase.io.read(folder / "uq" / "candidates.extxyz", ":")
    assert (len(proposed), proposed.info["step"]) == (64, int(rows[rows.index(broken[0]) - 1]["step"]))
    if implausible == "continue":
        assert len(broken) == 1  # what is lost stays lost
        assert rows[-1]["n"] == "63"


@pytest.mark.parametrize("host", [WHEEL_1, DEBIAN_2])
def test_cut_outs_of_a_run(host, folder):
    configure(folder, select=8.0, every=2, cutout={"radius": 0.5, "shape": "cluster"}, min_distance=0.3)
    ok(run_host(host, folder, drive(PUSH), script(PUSH).replace(ATTACH, ATTACH.replace("invoke 1 ", "invoke 2 "))))
    candidates = ase.io.read(folder / "uq" / "candidates.extxyz", ":")
    cuts = ase.io.read(folder / "uq" / "cutouts.extxyz", ":")
    assert {cut.info["step"] for cut in cuts} == {atoms.info["step"] for atoms in candidates}
    assert all(cut.arrays["core"].sum() >= 1 for cut in cuts)
