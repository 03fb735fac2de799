"""Quantum ESPRESSO as an oracle: silicon with the pseudopotentials of Debian's package, 0.4 s for 2 atoms."""

from __future__ import annotations

import shutil
from pathlib import Path

from ase.build import bulk
from oracles import oracle

PSEUDO = Path("/usr/share/espresso/pseudo")
MISSING = "it needs Quantum ESPRESSO: apt-get install quantum-espresso quantum-espresso-data"
PRESENT = shutil.which("pw.x") is not None and PSEUDO.is_dir()


def rattled(seed=0, element="Si"):
    """Return 2 atoms."""
    atoms = bulk(element, "diamond", a=5.43)
    atoms.rattle(0.1, seed=seed)
    return atoms


def espresso(command="pw.x", electrons=None, keywords=None, pseudopotentials=None, **settings):
    """Return an oracle that runs pw.x."""
    profile = {"call": "ase.calculators.espresso:EspressoProfile", "command": command, "pseudo_dir": str(PSEUDO)}
    given = {
        "profile": profile,
        "pseudopotentials": {"Si": "Si.pbe-rrkj.UPF"} if pseudopotentials is None else pseudopotentials,
        "input_data": {
            "system": {"ecutwfc": 20, "occupations": "smearing", "smearing": "mv", "degauss": 0.01},
            "electrons": {"conv_thr": 1e-8, **(electrons or {})},
        },
        **(keywords or {}),
    }
    settings = {"wall_time": 300.0, **settings}
    return oracle("ase.calculators.espresso:Espresso", keywords=given, **settings)


def log_starts(folder):
    """Return a command that runs pw.x and logs each start, and the log."""
    log, script = folder / "starts", folder / "pw"
    script.write_text(f'#!/bin/sh\necho "start $*" >> "{log}"\nexec pw.x "$@"\n')
    script.chmod(0o755)
    return str(script), log
