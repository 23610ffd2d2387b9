"""Checkpoints of joint training: one file of tensors, from which an interrupted run goes on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import ArtifactError
from ...utils.saving.files import write_files

FILE = "training.safetensors"


class Progressed(NamedTuple):
    """How far a training is.

    Args:
        step: number of steps that are done.
        history: what was measured at each check, as plain data.
        best: the lowest held-out loss, and the check it was of; None before the first.
        first: the loss that others are compared with, before training.
    """

    step: int = 0
    history: list[dict[str, float]] = []
    best: tuple[float, int] | None = None
    first: float = 0.0


class Checkpoint:
    """The state of a training in a folder.

    Args:
        folder: where the file is, or will be written; None keeps nothing.
        about: what the training depends on, as plain data; a file that was written with other values is refused.

    Example:
        >>> Checkpoint(None, {}).read(nn.Module(), None) is None
        True
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self.path = None if folder is None else Path(folder).expanduser() / FILE
        self.about = json.loads(json.dumps(about))

    def write(
        self, module: nn.Module, optimiser: Any, best: Mapping[str, torch.Tensor], progressed: Progressed
    ) -> None:
        """Write parameters, the optimiser's state and the best parameters, all or nothing.

        Raises:
            DSASError: the file cannot be written; what was there is as it was.
        """
        if self.path is None:
            return
        from safetensors.torch import save

        tensors = {f"now.{name}": part for name, part in module.state_dict().items()}
        tensors |= {f"best.{name}": part for name, part in best.items()}
        for number, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": part for name, part in state.items() if part is not None}
        copies = {name: part.detach().cpu().clone().contiguous() for name, part in tensors.items()}
        metadata = {"about": json.dumps(self.about), "progressed": json.dumps(progressed)}
        write_files({self.path: save(copies, metadata=metadata)}, is_ours=_is_ours)

    def read(self, module: nn.Module, optimiser: Any) -> tuple[Progressed, dict[str, torch.Tensor]] | None:
        """Bring parameters and optimiser to where they were; None where nothing was written yet.

        Returns:
            How far it was, and the best parameters.

        Raises:
            ArtifactError: a file that is damaged, or of another training.
        """
        if self.path is None or not self.path.is_file():
            return None
        tensors, metadata = _read(self.path)
        about = json.loads(metadata["about"])
        different = sorted(key for key in {*about, *self.about} if about.get(key) != self.about.get(key))
        if different:
            raise ArtifactError(
                f"{self.path} is of another training ({', '.join(different)}): choose another folder, or delete it"
            )
        parts: dict[str, dict[str, torch.Tensor]] = {"now": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        module.load_state_dict(parts["now"])
        state = optimiser.state_dict()
        for name, tensor in parts["optimiser"].items():
            number, _, field = name.partition(".")
            state["state"].setdefault(int(number), {})[field] = tensor
        optimiser.load_state_dict(state)
        step, history, best, first = json.loads(metadata["progressed"])
        return Progressed(step, history, None if best is None else (best[0], best[1]), first), parts["best"]


def _is_ours(path: Path) -> bool:
    try:
        _read(path)
    except ArtifactError:
        return False
    return True


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): delete it to begin anew") from None
    if not {"about", "progressed"} <= set(metadata):
        raise ArtifactError(f"{path} holds no training: choose another folder")
    return tensors, metadata
