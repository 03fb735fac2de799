"""What processes that are started are told of this one."""

from __future__ import annotations

from quests_md.machine import inherit_environment


def test_what_makes_a_rank_is_not_handed_on_and_settings_are(monkeypatch):
    ranks = {
        "PMI_RANK": "1", "PMIX_RANK": "1", "PMI_FD": "5", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2",
        "HYDI_CONTROL_FD": "3", "HYDRA_CONTROL_FD": "3", "OMPI_COMM_WORLD_RANK": "1", "OMPI_UNIVERSE_SIZE": "2",
        "OMPI_MCA_ess_base_jobid": "7", "OMPI_MCA_orte_ess_num_procs": "2",
    }  # fmt: skip
    kept = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_MCA_btl": "tcp", "MPIR_CVAR_DEBUG": "1", "OMP_NUM_THREADS": "3"}
    for name, value in (ranks | kept).items():
        monkeypatch.setenv(name, value)
    told = inherit_environment()
    assert not set(ranks) & set(told)
    assert {name: told[name] for name in kept} == kept
