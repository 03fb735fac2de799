"""What of a run is worth keeping: frames that add information, and cut-outs of large ones."""

from ._cutout import Cutout, check_cutout, cutouts
from ._selection import SKIPPED, Kept, Proposal, Selection, Verdict

__all__ = ["SKIPPED", "Cutout", "Kept", "Proposal", "Selection", "Verdict", "check_cutout", "cutouts"]
