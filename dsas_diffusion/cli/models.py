"""The models of a command that works on several, loaded when they are first asked for."""

from __future__ import annotations

import argparse
from typing import Any

from dsas_core import llm

from .arguments import language_model, pipeline


class Models:
    """Pipelines, and language models with their tokenizers, by name; loaded as the command line says."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._loaded: dict[str, tuple[Any, ...]] = {}

    def load(self, name: str) -> tuple[Any, ...]:
        """What evaluating and learning take first: a pipeline, or a language model and its tokenizer."""
        if name not in self._loaded:
            if llm.is_language_model(name):
                self._loaded[name] = language_model(self._args, name)
            else:
                self._loaded[name] = (pipeline(with_model(self._args, name)),)
                self._loaded[name][0].set_progress_bar_config(disable=True)
        return self._loaded[name]


def with_model(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments, as if `--model` had been another one."""
    return argparse.Namespace(**{**vars(args), "model": name})
