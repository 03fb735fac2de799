"""Calculators that misbehave, each in one way: faults that electronic-structure codes have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.calculators.calculator import Calculator, FileIOCalculator, all_changes
from ase.calculators.emt import EMT
from limits import FOREVER, wait_until
from paths import TESTS

from quests_md.labelling import Oracle, compute

__all__ = ["compute", "copper", "fill", "oracle", "silicon", "states", "tblite"]

FOLDER = TESTS
PATH = os.pathsep.join([str(FOLDER), str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def oracle(calculator, **settings):
    """Return an oracle of this module, or of an import path."""
    path = calculator if ":" in calculator else f"oracles:{calculator}"
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATH}
    return Oracle(**{"calculator": path, "environment": environment, **settings})


EMT_PATH = "ase.calculators.emt:EMT"


def tblite(**keywords):
    return oracle("tblite.ase:TBLite", keywords={"method": "GFN1-xTB", "verbosity": 0, **keywords})


def silicon(seed=0, size=0.05):
    """Return 8 atoms, which take tblite 0.1 s."""
    atoms = bulk("Si", cubic=True)
    atoms.rattle(size, seed=seed)
    return atoms


def copper(seed=0, size=0.05):
    """Return 4 atoms, which take EMT no time."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(size, seed=seed)
    return atoms


class Faulty(EMT):
    """EMT, but `fault` happens first, in frames whose atoms have the tag `tag`, or in all."""

    def __init__(self, tag=None, **kwargs):
        self.tag = tag
        super().__init__(**kwargs)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.tag is None or self.tag in atoms.get_tags():
            self.fault()

    def fault(self):
        raise NotImplementedError


class Hangs(Faulty):
    """It starts another program, tells the process number of that one in a file, and both take for ever."""

    def __init__(self, told=None, **kwargs):
        self.told = told
        super().__init__(**kwargs)

    def fault(self):
        other = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"])
        if self.told:
            Path(self.told + ".part").write_text(str(other.pid))
            os.replace(self.told + ".part", self.told)
        time.sleep(FOREVER)


class Exits(Faulty):
    def fault(self):
        print("too many k-points", flush=True)
        os._exit(7)


class Forks(Faulty):
    """Its process ends, and what it has forked, which shares all that it has open, does not."""

    def fault(self):
        if os.fork() == 0:
            time.sleep(FOREVER)
        os._exit(7)


class Tidy(Faulty):
    """It removes the folder that it was given, and fails."""

    def fault(self):
        print("tidied up", flush=True)
        os.rmdir(os.getcwd())
        raise RuntimeError("nothing is left")


class Crashes(Faulty):
    def fault(self):
        os.kill(os.getpid(), signal.SIGSEGV)


class Killed(Faulty):
    def fault(self):
        os.kill(os.getpid(), signal.SIGKILL)


class CrashesOnce(Crashes):
    """It crashes unless the file is there, which it makes first."""

    def __init__(self, told, **kwargs):
        self.told = Path(told)
        super().__init__(**kwargs)

    def fault(self):
        if not self.told.exists():
            self.told.touch()
            super().fault()


class Leaves(Faulty):
    def fault(self):
        sys.exit("licence expired")


class Prints(Faulty):
    def fault(self):
        print('{"energy": 0}')
        os.write(1, b'{"energy": 1}\n')
        subprocess.run(["echo", '{"energy": 2}'], check=True)
        assert sys.stdin.read() == ""


class WithoutConvergence(Faulty):
    converged = True

    def fault(self):
        self.converged = False


class NanForces(Faulty):
    def fault(self):
        self.results["forces"][1, 2] = np.nan


class NanEnergy(Faulty):
    def fault(self):
        self.results["energy"] = self.results["free_energy"] = np.nan


class HugeForces(Faulty):
    def fault(self):
        self.results["forces"][2] = [0.0, 300.0, 400.0]


class FewForces(Faulty):
    def fault(self):
        self.results["forces"] = self.results["forces"][:-1]


class NanStress(Faulty):
    def fault(self):
        self.results["stress"][4] = np.nan


class Shifted(Faulty):
    """Labels of another oracle."""

    def __init__(self, energy=0.0, force=0.0, **kwargs):
        self.energy, self.force = energy, force
        super().__init__(**kwargs)

    def fault(self):
        self.results["energy"] += self.energy
        self.results["free_energy"] += self.energy
        self.results["forces"][1, 2] += self.force


class Various(Faulty):
    def fault(self):
        raise [ValueError, KeyError, OSError][int(self.atoms.get_tags()[0]) - 1]("no")


class Meshed(EMT):
    """It takes a mesh, as codes of plane waves do."""

    def __init__(self, kpts, **kwargs):
        self.kpts = kpts
        super().__init__(**kwargs)


def make_meshed(kpts):
    return Meshed(kpts)


class Moments(EMT):
    """Its energy is the sum of the initial magnetic moments."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["free_energy"] = float(atoms.get_initial_magnetic_moments().sum())


class Smeared(EMT):
    """Its free energy is 1 eV, and the one at zero smearing 2 eV."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results |= {"free_energy": 1.0, "energy": 2.0}


class Counts(Calculator):
    """Its energy is how often this object has calculated; it raises at a tag of 5."""

    implemented_properties = ("energy", "forces")
    count = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if 5 in atoms.get_tags():
            raise RuntimeError("no\nsuch frame")
        self.count += 1
        self.results = {"energy": float(self.count), "forces": np.zeros((len(atoms), 3))}


class Folder(EMT):
    """It needs a profile, and writes a file into its folder and another one into the working folder."""

    def __init__(self, profile, **kwargs):
        self.profile = profile
        super().__init__(**kwargs)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        Path(self.profile.folder, "in.txt").write_text(self.profile.text)
        Path("out.txt").write_text("done")
        if self.profile.text == "fail":
            raise RuntimeError("it failed")


class Profile:
    def __init__(self, folder, text):
        self.folder, self.text = folder, text


class Environment(EMT):
    """Its energy is 1 if the process believes to be a rank of an MPI job."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["free_energy"] = float(any(key.startswith(("PMI", "HYD", "MPI_LOCAL")) for key in os.environ))


class Echo(Calculator):
    """Its forces are the positions, and its stress is of the cell."""

    implemented_properties = ("energy", "forces", "stress")

    def check_state(self, atoms, tol=0):
        return all_changes  # ASE takes frames within 1e-15 Å for the same

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": atoms.positions.copy(), "stress": atoms.cell.array.flat[:6].copy()}


def fill(queue, tags):
    """Add a frame for each tag, which tells a faulty calculator whether to misbehave."""
    for seed, tag in enumerate(tags):
        atoms = copper(seed)
        atoms.set_tags(tag)
        queue.add(atoms)


def states(queue):
    return [entry.state for entry in queue.entries()]


def wait_for(path):
    """Return what a file holds once it is there."""
    wait_until(path.exists, f"{path} does not come")
    return path.read_text()


def wait_for_end(pid):
    wait_until(lambda: not _runs(pid), f"process {pid} goes on")


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


class ByFiles(FileIOCalculator):
    """A program that reads and writes files; each start of it adds a line to `told`."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, told, **kwargs):
        self.told = told
        super().__init__(command=f"{sys.executable} {FOLDER / 'by_files.py'} PREFIX", label="job", **kwargs)

    def write_input(self, atoms, properties=None, system_changes=None):
        super().write_input(atoms, properties, system_changes)
        with open(self.told, "a", encoding="utf-8") as file:
            file.write(" ".join(properties) + "\n")
        atoms.copy().write("job.in", format="json")

    def read_results(self):
        with open("job.out", encoding="utf-8") as file:
            found = json.load(file)
        self.results = {name: np.array(value) if name != "energy" else value for name, value in found.items()}
