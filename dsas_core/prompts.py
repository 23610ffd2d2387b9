"""Prompt files, by the name that people import them by: `dsas_core.learning.prompts`."""

from .learning.prompts import PromptSet, draft, expand, hints, load_prompts, read

__all__ = ["PromptSet", "draft", "expand", "hints", "load_prompts", "read"]
