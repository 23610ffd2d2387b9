"""Judging: arms, fronts, intervals, localisation, runs and reports. Knows no model family.

`dsas_diffusion.evaluation.evaluate` and `dsas_core.llm.evaluation.evaluate` measure with it.
"""

from __future__ import annotations

from .arms import ARMS, arm
from .evaluation import Evaluation
from .plan import Plan
from .run_store import Cell, Done, RunStore
from .summary import Point, summarise

__all__ = ["ARMS", "Cell", "Done", "Evaluation", "Plan", "Point", "RunStore", "arm", "summarise"]
