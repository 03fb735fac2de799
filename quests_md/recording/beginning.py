"""Taking a folder for a new run, in place of an earlier one where that is wanted."""

from __future__ import annotations

import json
from typing import Any

from ..errors import OutputError
from ..files import HeldFolder
from .about import ABOUT, write_about

__all__ = ["is_overwriting", "prepare"]


def prepare(folder: HeldFolder, names: tuple[str, ...], about: dict[str, Any], overwrite: bool) -> None:
    """Make the folder, and run.json in it; remove the files of an earlier run.

    Parameters
    ----------
    names
        Files that a run has, beside run.json.
    about
        The content of run.json.

    Raises
    ------
    OutputError
        It holds an earlier run that is not to be replaced, or cannot be used.
    """
    folder.claim()
    try:
        old = [name for name in (*names, ABOUT) if folder.exists(name)]
        if old and not overwrite:
            raise OutputError(
                f"{folder.path} holds an earlier run ({old[0]}): choose another output, "
                "set resume = true to go on with it, or set overwrite = true"
            )
        others = [n for n in folder.names() if n in names or n.startswith("resume.") or n.endswith(".part")]
        try:  # first: a folder that cannot be written keeps the earlier run
            write_about(folder, {**about, "state": {**about["state"], "overwrites": True}} if others else about)
        except OutputError as error:
            reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else error
            raise OutputError(f"{folder.path}: cannot be used as output folder: {reason}") from error
        for name in others:
            folder.remove(name)
        if others:  # killed before this, a run does not go on with what is left of the other one: `is_overwriting`
            write_about(folder, about)
    except BaseException:
        folder.release()
        raise


def is_overwriting(folder: HeldFolder) -> bool:
    """Return whether a run was killed before it had removed the files of an earlier one: there is nothing to resume."""
    try:
        with folder.open(ABOUT) as file:
            content: Any = json.loads(file.read())
        return bool(content["state"]["overwrites"])
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return False  # there is none, or whoever reads it strictly says what is wrong with it
