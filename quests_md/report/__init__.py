"""Pictures of what a run or a loop wrote, and the page of a run or a dataset."""

from ._generations import generations
from ._html_dataset import dataset_page
from ._html_run import run_page
from ._timeline import timeline

__all__ = ["dataset_page", "generations", "run_page", "timeline"]
