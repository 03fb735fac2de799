"""Ctrl-C at a job of several ranks, as a terminal gives it: to mpiexec, and to whoever is in its group."""

from __future__ import annotations

import os
import signal
import subprocess

import ase.io
import lammps_runs
import pytest
from lammps_runs import TWO_RANKS, configure, drive, rows_of, run_host, run_json, script
from limits import wait_until

RANKS_4 = [pytest.param(host.values[0].replace("2", "4"), marks=host.marks) for host in TWO_RANKS]
LONG = "run 100000000\n"


def interrupt(folder):
    """Return what takes the place of `subprocess.run`: the job gets Ctrl-C when a few frames have their rows."""

    def count_rows():
        path = folder / "uq" / "monitor.csv"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def run(command, *, timeout, check, capture_output, **more):
        pipe = subprocess.PIPE
        hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 # a job of a shell may ignore it
        job = subprocess.Popen(command, stdout=pipe, stderr=pipe, start_new_session=True, preexec_fn=hear, **more)
        try:
            wait_until(lambda: count_rows() > 5 or job.poll() is not None, "no frames were evaluated")
            os.killpg(job.pid, signal.SIGINT)
            said = job.communicate(timeout=timeout)
        except BaseException:
            os.killpg(job.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(command, job.returncode, *said)

    return run


@pytest.mark.parametrize("host", RANKS_4)
def test_ctrl_c_ends_four_ranks_in_order(host, folder, monkeypatch):
    """The launcher hands SIGINT on to the wheel's ranks. That of OpenMPI sends SIGTERM, and soon kills who is left."""
    for launcher in ("OMPI", "PRTE"):  # OpenMPI 4, which always waits twice that long, and 5
        monkeypatch.setitem(lammps_runs.POLITE, f"{launcher}_MCA_odls_base_sigkill_timeout", "10")
    configure(folder, every=2, select=-1e9)
    monkeypatch.setattr(lammps_runs.subprocess, "run", interrupt(folder))
    finished = run_host(host, folder, drive(LONG), script(LONG))
    assert finished.returncode != 0
    steps = [int(row["step"]) for row in rows_of(folder)]
    assert steps == list(range(steps[0], steps[-1] + 1, 2))
    saved = ase.io.read(folder / "uq" / "candidates.extxyz", ":")
    assert [(atoms.info["step"], len(atoms)) for atoms in saved] == [(step, 64) for step in steps]
    run = run_json(folder)
    status, reason = ("failed", "HostError: interrupted") if host.startswith("wheel") else ("halted", "; SIGTERM")
    assert (run["status"], run["ranks"], run["last_step"]) == (status, 4, steps[-1])
    assert run["reason"].endswith(reason)
    assert ase.io.read(folder / "uq" / "last.extxyz").info["step"] == steps[-1]
