"""Moved to `dsas_core.llm.evaluation.evaluate`; this name goes in 0.3.0."""

from ..utils.deprecation import forward_to

__getattr__ = forward_to("dsas_core.llm.evaluation.evaluate", __name__)
