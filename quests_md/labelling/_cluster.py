"""A Dask cluster of batch jobs: SLURM, PBS or LSF, by dask-jobqueue."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ..errors import ConfigError, MissingExtraError
from ..toml import make_settings, read_toml

__all__ = ["Cluster"]

_CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster"}
_Count = Annotated[int, pydantic.Field(ge=1)]


class Cluster(pydantic.BaseModel):
    """The batch jobs in which a labelling calculates.

    Attributes
    ----------
    kind
        The batch system.
    jobs
        How many jobs are sent.
    calculations
        How many calculations run at once in each job.
    cores
        Cores of each job, for all its calculations. The command of the code says how many it uses.
    memory
        Of each job, as "32GB".
    walltime
        Of each job, as "12:00:00". A calculation that a job's end kills costs one try of its frame.
    options
        Other keywords of the class of dask-jobqueue: `queue`, `account`, `job_script_prologue`, `interface`, ...
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["slurm", "pbs", "lsf"]
    jobs: _Count = 1
    calculations: _Count = 1
    cores: _Count = 1
    memory: str = "4GB"
    walltime: str = "01:00:00"
    options: dict[str, Any] = {}

    @classmethod
    def read(cls, path: str | Path) -> Cluster:
        """Read the TOML file of a cluster.

        Raises
        ------
        ConfigError
            The file does not exist or is no TOML; or it has an unknown key or a wrong value.
        """
        return make_settings(cls, read_toml(path), str(path))

    @property
    def workers(self) -> int:
        """How many calculations run at once when all jobs run."""
        return self.jobs * self.calculations

    def start(self) -> Any:
        """Send the jobs, and return the cluster of dask-jobqueue, as `make` does."""
        cluster = self.make()
        try:
            cluster.scale(jobs=self.jobs)
        except BaseException:
            with contextlib.suppress(OSError, RuntimeError):
                cluster.close()
            raise
        return cluster

    def make(self) -> Any:
        """Return the cluster of dask-jobqueue, which has sent no job yet.

        Raises
        ------
        MissingExtraError
            dask-jobqueue is not installed.
        ConfigError
            The class of dask-jobqueue does not take the options.
        """
        try:
            import dask_jobqueue
        except ImportError as error:
            raise MissingExtraError("a cluster needs dask-jobqueue: pip install 'quests_md[dask]'") from error
        # A worker of Dask for each calculation. The cores of the job are for the codes that they start.
        given: dict[str, Any] = {"cores": self.calculations, "processes": self.calculations}
        given |= {"memory": self.memory, "walltime": self.walltime}
        for key, value in [*self._reserve().items(), *self.options.items()]:
            both = isinstance(given.get(key), list) and isinstance(value, list)
            given[key] = [*given[key], *value] if both else value
        try:
            return getattr(dask_jobqueue, _CLASSES[self.kind])(**given)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"options: dask-jobqueue does not take them: {error}") from error

    def _reserve(self) -> dict[str, Any]:
        """Return how this batch system is asked for the cores of a job, as places for the ranks of a code."""
        if self.kind == "slurm":  # dask-jobqueue asks for one task of many cores, in which an mpirun finds one place
            skip = ["#SBATCH -n 1", "#SBATCH --cpus-per-task"]
            return {"job_directives_skip": skip, "job_extra_directives": [f"-n {self.cores}"]}
        if self.kind == "lsf":
            return {"ncpus": self.cores}
        return {"resource_spec": f"select=1:ncpus={self.cores}:mpiprocs={self.cores}:mem={self.memory}"}
