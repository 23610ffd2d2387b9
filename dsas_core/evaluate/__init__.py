"""Judging: arms, fronts, intervals, localisation, runs and reports. Knows no model family.

`dsas_diffusion.evaluate` and `dsas_core.llm.evaluate` measure with it.
"""

from __future__ import annotations

from .arms import ARMS, arm
from .evaluation import Evaluation
from .plan import Plan
from .runs import Cell, Done, Run
from .summary import Point, summed_up

__all__ = ["ARMS", "Cell", "Done", "Evaluation", "Plan", "Point", "Run", "arm", "summed_up"]
