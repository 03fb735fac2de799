"""An index of own descriptors, SOAP vectors of DScribe: what each bandwidth says of real silicon.

python -m benchmarks soap FOLDER: the folder of the data of Zuo et al. (2020). Prints the table of
docs/own_descriptors.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
from scipy.stats import spearmanr

from quests_md import DescriptorSpec, Index, delta_entropy
from quests_md.index import calibrate
from quests_md.information import likelihood_bandwidth

from .printing import head

BANDWIDTHS = (1.4, 3.0, 10.0, 20.0, 30.0)  # in the unit of the vectors
TRIED = np.geomspace(0.1, 100.0, 61)


def main() -> None:
    """Print the table for the folder that the command line names."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "Si_test.extxyz").exists():
        raise SystemExit(__doc__)
    from dscribe.descriptors import SOAP

    soap = SOAP(species=["Si"], r_cut=5.0, n_max=6, l_max=4, periodic=True)
    frames, tests = (ase.io.read(Path(sys.argv[1]) / f"Si_{name}.extxyz", ":") for name in ("training", "test"))
    x, query = ([soap.create(atoms) for atoms in some] for some in (frames, tests))
    rows, asked = np.vstack(x), np.vstack(query)
    head("SOAP vectors as own descriptors: the silicon of Zuo et al.", "dscribe")
    print(f"{len(rows)} references of {rows.shape[1]} columns in {len(x)} frames")
    print(f"{len(asked)} environments in {len(query)} frames of the test set")
    print(f"the likelihood is largest at h = {likelihood_bandwidth(rows, TRIED).bandwidth:.2g}")
    spec = DescriptorSpec()
    built_in = delta_entropy(spec.compute(tests), spec.compute(frames))
    print(f"built-in descriptor, h = 0.015: {100 * np.mean(built_in > 0):.0f} % of test environments with dH > 0")
    print(
        "   h   left out: largest dH, median    90 %   test environments with dH > 0   rank correlation with built-in"
    )
    for h in BANDWIDTHS:
        offsets = np.cumsum([0] + [len(part) for part in x])
        index = Index.from_descriptors(rows, h, frame_offsets=offsets, name="SOAP")
        left_out = np.quantile(calibrate(index).maxima, (0.5, 0.9))
        dH = index.delta_entropy(asked)
        print(
            f"{h:4g}{left_out[0]:29.3g}{left_out[1]:8.3g}{100 * np.mean(dH > 0):30.0f} %"
            f"{spearmanr(dH, built_in).statistic:33.2f}",
            flush=True,
        )
