"""Structures and the peer `quests`, shared by the tests."""

from __future__ import annotations

import tempfile
import warnings
from types import SimpleNamespace

import pytest
from ase.build import bulk
from hypothesis import HealthCheck, settings
from structures import STRUCTURES

from quests_md import Index

# A machine that is busy is no failure.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def structure():
    """Return a function that makes an ``ase.Atoms`` by name."""
    return lambda name: STRUCTURES[name]()


@pytest.fixture(scope="session")
def quests():
    """Return the functions of the peer, called with its own warnings silenced: casts in numba, ln 0."""
    from quests import descriptor, entropy

    def silenced(function):
        def call(*args, **kwargs):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(*args, **kwargs)

        return call

    return SimpleNamespace(
        descriptors=silenced(lambda atoms, k, cutoff: descriptor.get_descriptors([atoms], k=k, cutoff=cutoff)),
        multicomponent=silenced(
            lambda atoms, k, cutoff, species: descriptor.get_descriptors_multicomponent(
                [atoms], k=k, cutoff=cutoff, species=species
            )
        ),
        delta_entropy=silenced(entropy.delta_entropy),
        entropy=silenced(entropy.entropy),
        diversity=silenced(entropy.diversity),
        bandwidth=silenced(entropy.get_bandwidth),
    )


@pytest.fixture(scope="session")
def silicon_index(tmp_path_factory):
    """Return the path of an index of silicon at about 300 K."""
    frames = [bulk("Si", cubic=True) * (2, 2, 2) for _ in range(6)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.08, seed=seed)
    path = tmp_path_factory.mktemp("index") / "si.qindex"
    Index.build(frames, bandwidth="auto", threads=1).save(path)
    return path


@pytest.fixture
def folder(tmp_path, silicon_index):
    """Return a folder with that index in it, where a LAMMPS can run."""
    (tmp_path / "si.qindex").write_bytes(silicon_index.read_bytes())
    return tmp_path


@pytest.fixture
def scratch_folders(tmp_path, monkeypatch):
    """Let temporary files, those of processes that are started too, be removed with the files of the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture(scope="session")
def postgresql_server():
    """Return a server of PostgreSQL that runs until the last test has."""
    from postgresql import MISSING, Server, find_programs

    programs = find_programs()
    if programs is None:
        pytest.skip(MISSING)
    pytest.importorskip("ase_db_backends", reason="pip install 'quests_md[postgresql]'")
    server = Server(programs)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def address(request, tmp_path):
    """Return where a queue can be made, in each kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "queue.db")
    return request.getfixturevalue("postgresql_server").make()


# -- in which order --------------------------------------------------------------------------------------

# Files that take about half a minute of a processor or more, roughly the longest first. `--durations` finds others.
_LONG = [
    "test_processors",
    "test_lammps_restart",
    "test_examples",
    "test_cli_ranks",
    "test_lammps_callbacks",
    "test_lammps_attach",
    "test_learning",
    "test_lammps_commands",
    "test_recording_killed",
    "test_exploration",
    "test_learning_killed",
    "test_lammps_commands_atoms",
    "test_cli_help",
    "test_cli_datasets",
    "test_cli_installation",
    "test_lammps_replicas",
    "test_exploration_ase",
    "test_lammps_box_and_fixes",
    "test_lammps_long_run",
    "test_live_events",
    "test_lammps_errors",
    "test_docs_lammps",
    "test_label_executors",
    "test_quantum_espresso",
]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Let the long files begin first: where several processes take one file after the other, they end together then."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


# -- what must run ---------------------------------------------------------------------------------------

_MUST_RUN = ("browser", "dft", "lammps", "mpi", "postgresql", "python_invoke", "viewers")
_MADE_APART = ("kokkos", "mlips")  # what scripts/test does not install


def pytest_addoption(parser):
    parser.addoption(
        "--must-run", action="store_true", help=f"a skipped test marked {', '.join(_MUST_RUN)} is a failure"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.config.getoption("--must-run"):
        marks = [name for name in _MUST_RUN if item.get_closest_marker(name)]
        if marks and not any(map(item.get_closest_marker, _MADE_APART)):
            reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
            report.outcome = "failed"
            report.longrepr = f"must run ({', '.join(marks)}), but was skipped: {reason}"
    return report
