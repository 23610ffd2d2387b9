"""Prompt files (public as `dsas_core.prompts`): what shows a concept, what shows its replacement, what stays.

`prompt_set.py` explains the format; `draft` makes a first file from two phrases, `hints` says what could be better.
"""

from .draft import draft
from .hints import hints
from .prompt_file import load_prompts
from .prompt_set import PromptSet
from .templates import expand

#: the name of `load_prompts` in earlier releases
read = load_prompts

__all__ = ["PromptSet", "draft", "expand", "hints", "load_prompts", "read"]
