"""Published methods by name: which map or gate, its formula, its source, how it is fitted."""

from .registry import Both, Described, available, check_options, gate, get, mapping, own_gate

__all__ = ["Both", "Described", "available", "check_options", "gate", "get", "mapping", "own_gate"]
