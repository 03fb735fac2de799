"""What of a run is worth a calculation: cut-outs of large frames."""

from ._cutout import Cutout, cutouts

__all__ = ["Cutout", "cutouts"]
