"""What unconverged runs look like: each line of the table finds the line that its code writes."""

from __future__ import annotations

import pytest

from quests_md.labelling._convergence import CODES, find_bad_line, find_code, find_unconverged, read_steps

BY_NAME = {code.name: code for code in CODES}
# What each code writes if it has not converged and if it has, as its outputs and other readers have it.
OUTPUTS = {
    "Quantum ESPRESSO": (
        "espresso.pwo",
        "     convergence NOT achieved after 100 iterations: stopping\n",
        "     scf convergence threshold =      1.0E-08\n     estimated scf accuracy    <       3.0E-02 Ry\n"
        "     estimated scf accuracy    <       2.8E-09 Ry\n     convergence has been achieved in  11 iterations\n",
        11,
    ),
    "ABINIT": (
        "abinit.abo",
        " scprqt:  WARNING -\n  nstep=    3 was not enough SCF cycles to converge;\n",
        " ETOT  1  -8.5  -8.5E+00 2.4E-03 3.6E+00\n ETOT  2  -8.6  -1.0E-03 2.4E-03 3.6E+00\n",
        2,
    ),
    "CP2K": (
        "cp2k.out",
        " *** WARNING in qs_scf.F:601 :: SCF run NOT converged ***\n",
        "  *** SCF run converged in    12 steps ***\n",
        12,
    ),
    "VASP": (
        "OUTCAR",
        "--- aborting loop EDIFF was not reached (unconverged)  ---\n",
        "--- Iteration      1(  14)  ---\n--- aborting loop because EDIFF is reached ---\n",
        14,
    ),
    "FHI-aims": (
        "aims.out",
        "          Have a nice day.\n  ** WARNING! SELF-CONSISTENCY CYCLE DID NOT CONVERGE\n",
        "  Self-consistency cycle converged.\n  | Number of self-consistency cycles          :           21\n",
        21,
    ),
    "SIESTA": (
        "siesta.out",
        "SCF_NOT_CONV: SCF did not converge in maximum number of steps.\n",
        "SCF cycle converged after 16 iterations\n",
        16,
    ),
    "CASTEP": (
        "si.castep",
        "*Warning* max. SCF cycles performed but system has not reached the groundstate.\n",
        "",
        None,
    ),
    "DFTB+": ("dftb.out", "-> SCC is NOT converged, maximal SCC iterations exceeded\n", "", None),
    "Octopus": (
        "octopus.out",
        "SCF *not* converged after  200 iterations.\n",
        "SCF converged in   18 iterations\n",
        18,
    ),
    "ORCA": ("orca.out", " !!! SCF NOT CONVERGED AFTER 125 CYCLES !!!\n", " SCF CONVERGED AFTER  13 CYCLES\n", 13),
}


def test_each_code_whose_output_is_read_has_an_output_here():
    assert set(OUTPUTS) == {code.name for code in CODES if code.files}


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_output_of_a_run_that_has_not_converged_is_found(name, tmp_path):
    file, bad, good, steps = OUTPUTS[name]
    (tmp_path / file).write_text(f"{name}\n{good}\nend\n")
    assert find_unconverged(BY_NAME[name], [tmp_path]) == ""
    assert read_steps(BY_NAME[name], [tmp_path]) == steps
    (tmp_path / file).write_text(f"{name}\n{bad}end\n")
    assert file in find_unconverged(BY_NAME[name], [tmp_path])
    assert " ".join(bad.splitlines()[-1].split()).rstrip(";") in find_bad_line(BY_NAME[name], [tmp_path])


def test_an_output_that_is_not_there_is_no_convergence(tmp_path):
    assert (
        find_unconverged(BY_NAME["VASP"], [tmp_path])
        == "VASP has left no OUTCAR: it cannot be seen whether it converged"
    )
    assert find_unconverged(BY_NAME["GPAW"], [tmp_path]) == ""


def test_the_accuracy_that_is_above_the_threshold_is_no_convergence(tmp_path):
    """pw.x with scf_must_converge = .false. says that convergence has been achieved."""
    good = OUTPUTS["Quantum ESPRESSO"][2].replace("2.8E-09", "0.00711000")
    (tmp_path / "espresso.pwo").write_text(good)
    assert "0.00711000 Ry, is above the threshold, 1.0E-08 Ry" in find_unconverged(
        BY_NAME["Quantum ESPRESSO"], [tmp_path]
    )


def test_calculators_are_found_by_their_classes():
    from ase.calculators.abinit import Abinit
    from ase.calculators.aims import Aims
    from ase.calculators.castep import Castep
    from ase.calculators.cp2k import CP2K
    from ase.calculators.dftb import Dftb
    from ase.calculators.elk import ELK
    from ase.calculators.emt import EMT
    from ase.calculators.espresso import Espresso
    from ase.calculators.octopus import Octopus
    from ase.calculators.orca import ORCA
    from ase.calculators.siesta import Siesta
    from ase.calculators.vasp import Vasp
    from tblite.ase import TBLite

    kinds = [Espresso, Abinit, CP2K, Vasp, Aims, Siesta, Castep, Dftb, Octopus, ORCA, ELK, TBLite]
    assert [find_code(kind).name for kind in kinds] == [code.name for code in CODES if code.name != "GPAW"]
    assert find_code(type("Own", (Espresso,), {})).name == "Quantum ESPRESSO"
    assert find_code(EMT) is None
