"""Until every caller knows the new names: this file has become `generation_watcher` and `batch_layout`."""

from .batch_layout import BRANCHES as ROWS
from .batch_layout import SAMPLE, TIMESTEP
from .batch_layout import BatchLayout as Rows

__all__ = ["ROWS", "SAMPLE", "TIMESTEP", "Rows"]
