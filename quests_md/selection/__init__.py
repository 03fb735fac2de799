"""What of a run is worth keeping: frames that add information to the index and to what the run kept already."""

from ._selection import Kept, Proposal, Selection, Verdict

__all__ = ["Kept", "Proposal", "Selection", "Verdict"]
