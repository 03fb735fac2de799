"""OVITO's classifiers of crystal structure, beside which dH is put."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quests_md import Frame

__all__ = ["TYPES", "adaptive_cna", "template_matching"]

TYPES = ("other", "fcc", "hcp", "bcc")


def adaptive_cna(frame: Frame) -> NDArray[np.int64]:
    """Return (n,) the place in `TYPES` of every atom, by adaptive common-neighbour analysis."""
    from ovito.modifiers import CommonNeighborAnalysisModifier as Analysis

    return _types(frame, Analysis(mode=Analysis.Mode.AdaptiveCutoff))


def template_matching(frame: Frame) -> NDArray[np.int64]:
    """Return (n,) the place in `TYPES` of every atom, by polyhedral template matching with OVITO's settings."""
    from ovito.modifiers import PolyhedralTemplateMatchingModifier

    return _types(frame, PolyhedralTemplateMatchingModifier())


def _types(frame: Frame, modifier: Any) -> NDArray[np.int64]:
    from ovito.data import DataCollection

    data = DataCollection()
    particles = data.create_particles(count=len(frame.positions))
    particles.create_property("Position", data=frame.positions)
    cell = np.zeros((3, 4))
    cell[:, :3], cell[:, 3] = np.asarray(frame.cell).T, frame.origin
    data.create_cell(cell, pbc=tuple(bool(p) for p in np.asarray(frame.pbc)))
    data.apply(modifier)
    types = np.array(data.particles.structure_types[...], dtype=np.int64)
    return np.where(types < len(TYPES), types, 0)  # icosahedra and what else there may be are no crystal here
