"""Moved to `dsas_diffusion.evaluation.evaluate`; this name goes in 0.3.0."""

from dsas_core.utils.deprecation import forward_to

__getattr__ = forward_to("dsas_diffusion.evaluation.evaluate", __name__)
