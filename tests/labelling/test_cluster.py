"""Batch jobs: what a batch system is asked for; and a real SLURM of one node, where Debian's slurm-wlm is installed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time

import pytest
from limits import LIMIT, wait_until
from oracles import EMT_PATH, PATH, fill, oracle, states

from quests_md.errors import ConfigError, InputError
from quests_md.labelling import Queue, label, make_executor
from quests_md.labelling._cluster import Cluster

pytest.importorskip("dask_jobqueue", reason="pip install 'quests_md[dask]'")


# -- what is asked for ---------------------------------------------------------------------------------------


def script_of(**keys):
    """Return the script of a job, which is not sent."""
    with Cluster(**keys).make() as cluster:
        return cluster.job_script()


def test_slurm_is_asked_for_a_task_of_each_core():
    options = {
        "queue": "normal",
        "job_extra_directives": ["--exclusive"],
        "job_script_prologue": ["module load espresso"],
    }
    script = script_of(kind="slurm", jobs=2, cores=16, memory="32GB", walltime="12:00:00", options=options)
    lines = script.splitlines()
    assert {"#SBATCH -n 16", "#SBATCH -p normal", "#SBATCH --exclusive", "#SBATCH -t 12:00:00"} <= set(lines)
    assert "#SBATCH -n 1" not in lines
    assert "--cpus-per-task" not in script
    assert "module load espresso" in lines
    assert "--nthreads 1" in script


def test_pbs_is_asked_for_places_of_each_core():
    script = script_of(kind="pbs", cores=16, memory="32GB")
    assert "#PBS -l select=1:ncpus=16:mpiprocs=16:mem=32GB" in script


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "condor"', "kind: input should be 'slurm', 'pbs' or 'lsf', not 'condor'"),
        ('kind = "slurm"\njobs = 0', "jobs: input should be greater than or equal to 1, not 0"),
        ('kind = "slurm"\nqueue = "all"', "unknown key 'queue'"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path, text, message):
    (tmp_path / "slurm.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        make_executor("dask", cluster=tmp_path / "slurm.toml")


def test_a_cluster_is_for_dask():
    with pytest.raises(InputError, match="a cluster is for the executor dask without a scheduler"):
        make_executor("local", cluster="slurm.toml")


# -- a real SLURM --------------------------------------------------------------------------------------------

CONF = """
ClusterName=one
SlurmctldHost={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
SlurmctldPort=26817
SlurmdPort=26818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd")


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """Start a SLURM of this machine."""
    if os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)):
        pytest.skip("as root: apt-get install slurm-wlm; no script installs it")
    place = tmp_path_factory.mktemp("slurm")
    for name in ("munge", "state", "spool"):
        (place / name).mkdir()
    for folder in (place, *place.parents[:3]):
        folder.chmod(0o755)  # munged wants nobody but root to be able to write
    key = place / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    cpus = os.cpu_count() or 1
    (place / "slurm.conf").write_text(CONF.format(node=platform.node(), place=place, cpus=cpus))
    monkeypatch.setenv("SLURM_CONF", str(place / "slurm.conf"))
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{name}={place / 'munge' / file}" for name, file in munge.items()]
    programs = [
        subprocess.Popen([*command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (["munged", "--foreground", "--force", *options], ["slurmctld", "-D"], ["slurmd", "-D"])
        if time.sleep(1) is None  # each needs the one before
    ]
    wait_until(lambda: "idle" in subprocess.run(["sinfo"], capture_output=True, text=True).stdout, "no idle node")
    yield
    for program in reversed(programs):
        program.terminate()
        program.wait(LIMIT)


def test_jobs_of_slurm_label_and_end(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PATH)
    (tmp_path / "slurm.toml").write_text('kind = "slurm"\njobs = 2\nmemory = "500MB"\nwalltime = "00:10:00"\n')
    queue = Queue(tmp_path / "queue.db")
    fill(queue, [0, 5, 0, 0, 0])
    with make_executor("dask", cluster="slurm.toml") as executor:
        assert executor.workers == 2
        running = subprocess.run(["squeue", "-h", "-t", "R"], capture_output=True, text=True, check=True).stdout
        assert len(running.splitlines()) == 2
        counts = label(queue, oracle("Crashes", keywords={"tag": 5}), executor, workers=2)
    assert states(queue) == ["done", "quarantined", "done", "done", "done"]
    assert counts.done == 4
    wait_until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True).stdout, "jobs are left")


def test_an_oracle_by_its_path_labels_in_a_job(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm.toml").write_text('kind = "slurm"\nmemory = "500MB"\n')
    queue = Queue(tmp_path / "queue.db")
    fill(queue, [0])
    with make_executor("dask", cluster="slurm.toml") as executor:
        assert label(queue, oracle(EMT_PATH), executor, workers=1).done == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what dask-jobqueue leaves half made
def test_options_that_nobody_knows_are_an_error():
    with pytest.raises(ConfigError, match=r"options: dask-jobqueue does not take them: .*colour"):
        Cluster(kind="slurm", options={"colour": "red"}).make()
