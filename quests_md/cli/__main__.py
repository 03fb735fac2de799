"""``python -m quests_md.cli``: for programs that start Python, such as ``python -m mpi4py.futures``."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    main(prog_name="quests-md")
