"""The models of a command that works on several, loaded when they are first asked for."""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import language_model, pipeline


class Models:
    """Pipelines and language models by name, on the device and in the precision of the command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._pipelines: dict[str, Any] = {}
        self._language_models: dict[str, tuple[Any, Any]] = {}

    def pipeline(self, name: str) -> Any:
        """A pipeline, without a bar over its steps."""
        if name not in self._pipelines:
            self._pipelines[name] = pipeline(with_model(self._args, name))
            self._pipelines[name].set_progress_bar_config(disable=True)
        return self._pipelines[name]

    def language_model(self, name: str) -> tuple[Any, Any]:
        """A language model with its tokenizer."""
        if name not in self._language_models:
            self._language_models[name] = language_model(self._args, name)
        return self._language_models[name]


def with_model(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments, as if `--model` had been another one."""
    return argparse.Namespace(**{**vars(args), "model": name})
