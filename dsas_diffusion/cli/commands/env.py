"""`dsas env`: versions, device and threads, to go with a bug report."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ... import __version__
from ...pipelines.load import BUILTIN

_LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "scikit-learn",
    "numpy",
    "pillow",
)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Versions of what is installed, and what it runs on."""
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return {
        "dsas": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{library: _version(library) for library in _LIBRARIES},
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "built-in models": [name for name, folder in BUILTIN.items() if folder.is_dir()],
    }


def report(document: dict[str, Any]) -> None:
    """Print a line for each."""
    width = max(map(len, document))
    for name, value in document.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{name:<{width}}  {text if text not in (None, '') else '–'}")


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
