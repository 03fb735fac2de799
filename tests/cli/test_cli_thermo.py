"""`quests-md thermo`: from frames and tables to results and pictures, and how it fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from click.testing import CliRunner, Result

from quests_md import DescriptorSpec, cli
from quests_md.report import entropy_comparison, entropy_states, entropy_windows, heat_entropies, phase_diagram
from quests_md.thermo import (
    K_B,
    Phase,
    compare,
    entropy_difference,
    heat_entropy,
    phase_boundary,
    state_entropies,
    window_entropies,
)

T = np.array([300.0, 500.0, 700.0, 900.0])


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with frames of rattled copper at four temperatures, and tables."""
    monkeypatch.chdir(tmp_path)
    for i, at in enumerate(T):
        frames = [bulk("Cu", cubic=True) * (2, 2, 1) for _ in range(6)]
        for seed, atoms in enumerate(frames):
            atoms.rattle(0.0035 * np.sqrt(at), seed=10 * i + seed)
        ase.io.write(f"md{at:g}.xyz", frames)
    write("heat.csv", T=T, enthalpy=3 * K_B * T, enthalpy_error=np.full(4, 1e-3))
    at, pressure = (axis.ravel() for axis in np.meshgrid(T, [0.0, 5.0]))
    for name, energy, volume, entropy in (("alpha", 0.0, 12.0, 0.0), ("beta", 0.04, 12.1, 1.0)):
        U = energy + 3 * K_B * at
        write(
            f"{name}.csv", T=at, P=pressure, U=U, V=at * 0 + volume, H=3 * np.log(at) + entropy, H_error=at * 0 + 0.01
        )


def write(path: str, **columns: np.ndarray) -> None:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    Path(path).write_text("\n".join([",".join(columns), *(",".join(map(repr, row)) for row in rows)]) + "\n")


def thermo(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, ["thermo", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def state(path: str):
    frames = ase.io.read(path, ":")
    return DescriptorSpec().compute(frames), np.arange(0, 97, 16)


def test_states_are_compared_with_enthalpies() -> None:
    thermo("states", *(f"{at:g}=md{at:g}.xyz" for at in T), "--size", 40, "--runs", 2, "-o", "H.csv", "--plot", "H.png")
    direct = state_entropies([state(f"md{at:g}.xyz") for at in T], size=40, runs=2)
    rows = rows_of("H.csv")
    assert [float(row["T"]) for row in rows] == T.tolist()
    assert [float(row["H"]) for row in rows] == pytest.approx(direct.entropy.tolist(), rel=1e-9)
    assert [float(row["H_error"]) for row in rows] == pytest.approx(direct.error.tolist(), rel=1e-6)
    thermo("integrate", "heat.csv", "--degree", 2, "-o", "S.csv", "--plot", "S.svg")
    assert [float(row["S"]) for row in rows_of("S.csv")] == pytest.approx((3 * np.log(T / 300)).tolist(), abs=1e-6)
    printed = thermo("compare", "H.csv", "heat.csv", "--degree", 2, "-o", "line.json", "--plot", "line.pdf").stdout
    line = json.loads(Path("line.json").read_text())
    heat = heat_entropy(T, 3 * K_B * T, 1e-3, degree=2)
    found = compare(heat.entropy, direct.entropy, error=direct.error, covariance=heat.covariance)
    assert line["slope"] == pytest.approx(found.slope, rel=1e-6)
    assert line["slope_error"] == pytest.approx(found.slope_error, rel=1e-3)
    assert f"slope: {found.slope:.6g}" in printed
    assert [row["residual"] for row in line["results"]] == pytest.approx(found.residual.tolist(), abs=1e-6)
    thermo("compare", "H.csv", "S.csv", "--configurational", "-o", "half.json")
    assert json.loads(Path("half.json").read_text())["slope"] == pytest.approx(2 * found.slope, rel=1e-6)
    for name, head in (("H.png", b"\x89PNG"), ("S.svg", b"<?xml"), ("line.pdf", b"%PDF")):
        assert Path(name).read_bytes().startswith(head)


def test_windows_and_differences() -> None:
    thermo("windows", "md500.xyz", "--width", 3, "--step", 1, "-o", "w.json", "--plot", "w.png")
    direct = window_entropies(*state("md500.xyz"), 3, 1)
    written = json.loads(Path("w.json").read_text())
    assert [row["H"] for row in written["results"]] == pytest.approx(direct.entropies.entropy.tolist(), rel=1e-9)
    assert (written["size"], written["bandwidth"], written["n_frames"]) == (48, 0.015, 6)
    thermo("difference", "md300.xyz", "md900.xyz@:3", "-o", "d.csv")
    difference = entropy_difference(state("md300.xyz"), (state("md900.xyz")[0][:48], np.arange(0, 49, 16)))
    (row,) = rows_of("d.csv")
    assert float(row["difference"]) == pytest.approx(difference.difference, rel=1e-9)
    thermo("states", "md300.xyz@0", "md300.xyz@1", "-o", "one.json")
    assert [row["H_error"] for row in json.loads(Path("one.json").read_text())["results"]] == [None, None]


def test_a_boundary_and_a_coupling() -> None:
    thermo("boundary", "alpha.csv", "beta.csv", "-o", "b.csv", "--plot", "b.png")
    rows = rows_of("b.csv")
    assert float(rows[0]["T"]) == pytest.approx(0.04 / K_B, rel=1e-6)
    assert {(row["below"], row["above"]) for row in rows} == {("alpha", "beta")}
    assert float(rows[0]["T_error"]) > 0
    thermo("boundary", "alpha.csv", "beta.csv", "--anchor", "600,0", "-o", "anchored.json")
    anchored = json.loads(Path("anchored.json").read_text())
    assert anchored["results"][0]["T"] == pytest.approx(600)
    assert thermo("boundary", "alpha.csv", "beta.csv", "--offset", repr(anchored["offset"])).stdout.count("600  ") == 1
    Path("ti.csv").write_text("lambda,slope\n0,0\n0.5,0.1\n1,0.2\n")
    thermo(
        "couple", "ti.csv", "--temperature", 500, "--energy", 0, "--reference", 0.3, "-o", "c.csv", "--plot", "c.png"
    )
    assert float(rows_of("c.csv")[0]["F"]) == pytest.approx(0.4)
    assert Path("c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "arguments", "message", "code"),
    [
        ("", "integrate t.csv", "t.csv: nothing in it", 1),
        ("T,enthalpy\n", "integrate t.csv", "t.csv: no rows in it", 1),
        (
            "T,H\n300,1\n",
            "integrate t.csv",
            "no column enthalpy (in eV per atom) in its first line, which has: T, H",
            1,
        ),
        ("T,enthalpy\n300,x\n", "integrate t.csv", "row 1, column enthalpy: a number is expected, not 'x'", 1),
        (
            "T,enthalpy\n300,1\n400\n",
            "integrate t.csv",
            "row 2, column enthalpy: a number is expected, not 'nothing'",
            1,
        ),
        ("T,enthalpy\n300,nan\n", "integrate t.csv", "row 1, column enthalpy: a finite number is expected", 1),
        ("T,T,enthalpy\n1,1,1\n", "integrate t.csv", "a column is there twice", 1),
        ("T,H\n300,1\n300,2\n", "compare t.csv heat.csv", "t.csv: a temperature is there twice", 1),
        ("T,H\n300,1\n301,2\n", "compare t.csv heat.csv", "fewer than two temperatures T in common", 1),
        ("", "integrate nothing.csv", "nothing.csv: no such file", 1),
        ("", "boundary alpha.csv heat.csv", "heat.csv: no column P (pressure in GPa)", 1),
        ("", "boundary alpha.csv beta.csv --anchor 5", "a temperature in K, a comma and a pressure", 2),
        ("", "boundary alpha.csv beta.csv --anchor 5,0 --offset 1", "give one of them", 2),
        ("", "integrate heat.csv -o t.csv", "t.csv exists", 1),
        ("", "integrate heat.csv --degree few", "a whole number, or none, not 'few'", 2),
        ("", "windows md300.xyz --width 7", "a window of 7 frames does not fit", 1),
    ],
)
def test_what_cannot_be_used_is_one_line(text: str, arguments: str, message: str, code: int) -> None:
    Path("t.csv").write_text(text)
    result = thermo(*arguments.split(), code=code)
    assert message in " ".join(result.output.split())
    assert not list(Path().glob("*.part"))


def test_pictures_hold_what_was_computed() -> None:
    found = state_entropies([state("md300.xyz"), state("md900.xyz")])
    (axes,) = entropy_states(found, ["cold", "hot"]).axes
    assert axes.lines[0].get_ydata().tolist() == found.entropy.tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cold", "hot"]
    (axes,) = entropy_windows(window_entropies(*state("md300.xyz"), 2)).axes
    assert axes.lines[0].get_xdata().tolist() == [0.5, 2.5, 4.5]
    heat = heat_entropy(T, 3 * K_B * T)
    (axes,) = heat_entropies(heat).axes
    assert axes.lines[0].get_ydata() == pytest.approx(heat.entropy)
    above, below = entropy_comparison(compare(heat.entropy, [1.0, 2.0, 2.5, 3.0]), T).axes
    assert [text.get_text() for text in above.texts] == ["300 K", "900 K"]
    assert np.abs(below.lines[1].get_ydata()).max() < 0.2
    flat = np.full(4, 12.0)
    phases = [Phase(T, T * 0, 3 * K_B * T + U, flat, 3 * np.log(T) + S) for U, S in ((0.0, 0.0), (0.05, 1.0))]
    (axes,) = phase_diagram(phase_boundary(*phases), ("ice", "water")).axes
    assert {text.get_text() for text in axes.texts} == {"water above the boundary", "ice below the boundary"}
    with pytest.raises(ValueError, match="no boundary to draw"):
        phase_diagram(phase_boundary(phases[0], Phase(T, T * 0, 3 * K_B * T + 9, flat, 3 * np.log(T))))


def test_own_descriptors_are_not_compared_with_others() -> None:
    rng = np.random.default_rng(0)
    np.save("own.npy", rng.normal(size=(20, 3)))
    np.save("wide.npy", rng.normal(size=(20, 4)))
    for other in ("md300.xyz", "wide.npy"):
        said = thermo("difference", "own.npy", other, "--bandwidth", "1", code=1).stderr
        assert f"own.npy holds own descriptors of 3 columns, and {other} other descriptors" in said
