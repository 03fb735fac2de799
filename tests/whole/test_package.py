"""The surface of the package: its names, what importing it costs, and who imports whom."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quests_md

PACKAGE = Path(quests_md.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

PUBLIC = "Decision DescriptorSpec Frame Index Monitor Run Session delta_entropy diversity entropy read_run"
HOSTS = {
    "quests_md.compression": "Compression Growth METHODS compress",
    "quests_md.hosts.ase": "BiasedCalculator MonitorObserver MonitoredCalculator",
    "quests_md.hosts.lammps": "Watch attach quests_attach quests_close quests_step",
    "quests_md.hosts.lammps_script": "run_script",
    "quests_md.hosts.mpi": "MpiComm launched_rank world",
    "quests_md.hosts.replay": "replay",
    "quests_md.hosts.torch_sim": "SessionReporter",
    "quests_md.information": """
        BandwidthChoice DEFAULT_BANDWIDTH Information LearningCurve Sampled bandwidth_from_volume delta_entropy
        diversity entropy information information_at learning_curve likelihood_bandwidth log_kernel_sum overlap
        sample_entropy suggest_bandwidth
    """,
    "quests_md.labelling": """
        Claim EXECUTORS Entry Imported Labelling Labels Oracle Outcome Queue STATES Trial check_labels compute digest
        import_labels label make_executor try_frame
    """,
    "quests_md.learning": """
        Inline InlineCalculator LearnConfig LearnResult Reporter learn run_lammps
    """,
    "quests_md.nuclei": """
        Nucleation Nuclei NucleiSeries SPHERE Threshold linked_mean nucleation nuclei threshold_between
    """,
    "quests_md.oracle": """
        Claim CommandTrainer EXECUTORS Entry Errors Imported Labelling Labels Oracle Outcome PodTrainer Potential
        Queue STATES Trainer Trial check_labels check_units compute digest errors fingerprint import_labels label
        make_executor make_trainer measure_residuals read_commands train try_frame
    """,
    "quests_md.recording": """
        HOOKS LAST_COVERED LastCovered Moment Place Recorder Run Session read_run reference_of
    """,
    "quests_md.report": """
        compression coupling_slopes dataset_page entropies entropy_comparison entropy_states entropy_windows
        generations heat_entropies histogram learning_curve likelihood nuclei_picture phase_diagram run_page timeline
    """,
    "quests_md.selection": "Cutout Kept Proposal SKIPPED Selection Verdict check_cutout cutouts",
    "quests_md.training": """
        CommandTrainer Errors PodTrainer Potential Trainer check_units errors fingerprint make_trainer
        measure_residuals read_commands train
    """,
    "quests_md.thermo": """
        Boundary Comparison CouplingEntropy EV_PER_GPA Entropies EntropyDifference HeatEntropy K_B Phase Windows
        compare coupling_entropy entropy_difference heat_entropy phase_boundary state_entropies window_entropies
    """,
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_public_names_are_these() -> None:
    assert quests_md.__all__ == PUBLIC.split()
    assert set(PUBLIC.split()) <= set(dir(quests_md))


@pytest.mark.parametrize("module", HOSTS)
def test_the_public_names_of_the_hosts_are_these(module: str) -> None:
    assert sorted(importlib.import_module(module).__all__) == HOSTS[module].split()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Indx'"):
        _ = quests_md.Indx


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert quests_md.__version__ == version("quests_md")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import quests_md", "numpy numba scipy ase matplotlib lammps pydantic mpi4py"),
        ("from quests_md import Index, Monitor", "scipy.linalg ase matplotlib lammps pydantic mpi4py"),
        ("import quests_md.recording", "scipy.linalg ase matplotlib lammps mpi4py"),
        ("from quests_md import read_run", "numba scipy ase matplotlib lammps pydantic mpi4py pandas"),
        ("import quests_md.cli.dataset_verbs", "scipy.linalg matplotlib lammps mpi4py"),
        ("import quests_md.hosts.lammps, quests_md.hosts.lammps_script", "scipy.linalg matplotlib lammps mpi4py"),
    ],
)
def test_importing_is_lazy(statement: str, absent: str) -> None:
    code = f"import sys; {statement}; bad = set('{absent}'.split()) & set(sys.modules); assert not bad, bad"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_imports_the_package_root() -> None:
    """`from .. import descriptors` is a module; `from .. import Index` would be the root's lazy name."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        if path.parent != PACKAGE or path.name != "__init__.py"
        for line, name in imports_of(path)
        if name == "quests_md" or (name.startswith("quests_md.") and not is_module(name) and name.count(".") == 1)
    ]
    assert not found, found


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import of a file, relative ones resolved."""
    package = module_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def public_things() -> Iterator[tuple[str, Any]]:
    for module, names in {"quests_md": PUBLIC, **HOSTS}.items():
        for name in names.split():
            thing = getattr(importlib.import_module(module), name)
            yield f"{module}.{name}", thing
            if inspect.isclass(thing):
                members = {k: v for k, v in vars(thing).items() if not k.startswith("_")}
                for key, member in members.items():
                    if callable(member) or isinstance(member, (property, classmethod, staticmethod)):
                        yield f"{module}.{name}.{key}", member


def test_every_public_name_has_a_docstring() -> None:
    # The methods of MpiComm are those of the protocol Comm, which documents them.
    bare = [name for name, thing in public_things() if not inspect.getdoc(thing) and ".MpiComm." not in name]
    assert not bare, bare


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_a_missing_extra_gives_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    from quests_md.errors import MissingExtraError
    from quests_md.hosts.mpi import MpiComm

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quests_md\[mpi\]'"):
        MpiComm(object())


def test_torch_sim_is_asked_for_only_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from quests_md.errors import MissingExtraError
    from quests_md.hosts import torch_sim

    monkeypatch.setattr(torch_sim, "_Base", object)
    with pytest.raises(MissingExtraError, match="pip install torch-sim-atomistic"):
        torch_sim.SessionReporter({"index": "cu.qindex", "select": 1.0, "halt": 2.0, "output": "uq-{n}"})
