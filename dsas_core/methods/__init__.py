"""Published methods by name: which map or gate, its formula, its source, how it is fitted. See `registry`."""

from .registry import GatedMapMethod, MethodInfo, available, check_options, default_gate, gate, get, mapping

__all__ = ["GatedMapMethod", "MethodInfo", "available", "check_options", "default_gate", "gate", "get", "mapping"]
