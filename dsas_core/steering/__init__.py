"""Steering: what happens at the sites while a steered model runs."""

from .steering import Steering
from .strengths import Auto

__all__ = ["Auto", "Steering"]
