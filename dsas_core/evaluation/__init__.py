"""Evaluation common to pictures and texts: arms, Pareto fronts, bootstrap intervals, cached results and reports.

`dsas_diffusion.evaluation.evaluate` and `dsas_core.llm.evaluation.evaluate` build on it.
"""

from __future__ import annotations

from .arms import ARMS, build_arm
from .evaluation import Evaluation
from .plan import Plan
from .run_store import Cell, CellResult, RunStore
from .summary import Point, summarise

__all__ = ["ARMS", "Cell", "CellResult", "Evaluation", "Plan", "Point", "RunStore", "build_arm", "summarise"]
