"""The training loop of the built-in models: resumable, with a moving average of the trained parameters.

Hidden matrices are optimised by Muon, everything else by AdamW. The learning rate rises over the first 2 % of the steps
and then falls along a cosine.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import ArtifactError

CHECKPOINT_STEPS = 200
REPORT_SECONDS = 20.0


@dataclass
class Trainer:
    """Trains float32 tensors in steps, starting from its last checkpoint.

    Args:
        name: of the training, in front of each line of progress.
        parameters: the tensors to train, float32.
        matrices: those that Muon optimises here; of several processes, each may have some.
        others: those that AdamW optimises.
        gradients: called with the number of a step; writes its gradients into the parameters and returns the loss.
        steps: of the whole training.
        learning_rate: the highest.
        last_share: the last learning rate, as a share of the highest.
        ema_decay: of the moving average; over the first steps it is lower.
        checkpoint: a safetensors file, written every CHECKPOINT_STEPS steps.
        identity: settings of the run, kept in the checkpoint.
        pace: how much one step processes, and its unit, for the lines of progress; None prints none.
        updated: called when the parameters have changed.
    """

    name: str
    parameters: Sequence[torch.Tensor]
    matrices: Sequence[torch.Tensor]
    others: Sequence[torch.Tensor]
    gradients: Callable[[int], float]
    steps: int
    learning_rate: float
    last_share: float
    ema_decay: float
    checkpoint: Path
    identity: str
    pace: tuple[int, str] | None = None
    updated: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        rate = self.learning_rate
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(list(self.others), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        ]
        if self.matrices:
            muon = torch.optim.Muon(list(self.matrices), rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self.optimisers.append(muon)

    def run(self) -> None:
        """Take all steps that are left.

        Raises:
            ArtifactError: the checkpoint belongs to another run.
        """
        first = self._restore() if self.checkpoint.is_file() else 0
        start = reported = time.monotonic()
        recent = 0.0
        for step in range(first, self.steps):
            loss = self._step(step)
            recent = 0.98 * recent + 0.02 * loss if step > first else loss
            now = time.monotonic()
            if self.pace is not None and (now - reported > REPORT_SECONDS or step + 1 == self.steps):
                seconds = (now - start) / (step + 1 - first)
                speed, left = self.pace[0] / seconds, (self.steps - step - 1) * seconds / 60
                print(
                    f"{self.name} {step + 1}/{self.steps} loss {recent:.4f} {speed:.0f} {self.pace[1]}/s "
                    f"{left:.1f} min left",
                    flush=True,
                )
                reported = now
            if (step + 1) % CHECKPOINT_STEPS == 0 and step + 1 < self.steps:
                self._save(step + 1)

    def _step(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / (0.02 * self.steps + 1))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate * warmup * (self.last_share + (1 - self.last_share) * cosine)
        loss = self.gradients(step)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.updated()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - min(self.ema_decay, (1 + step) / (10 + step)))
        return loss

    def _save(self, step: int) -> None:
        tensors = {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        tensors |= {f"average.{i}": mean for i, mean in enumerate(self.average)}
        for k, optimiser in enumerate(self.optimisers):
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{k}.{i}.{name}": value for name, value in state.items()}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            partial,
            {"step": str(step), "identity": self.identity},
        )
        os.replace(partial, self.checkpoint)

    def _restore(self) -> int:
        """Load the checkpoint; the number of the next step."""
        with safe_open(self.checkpoint, "pt") as file:
            metadata = file.metadata()
        if metadata["identity"] != self.identity:
            raise ArtifactError(
                f"{self.checkpoint} is of another run, {metadata['identity']}: delete it or use --folder"
            )
        saved = load_file(self.checkpoint)
        write_back([saved[f"parameter.{i}"] for i in range(len(self.parameters))], self.parameters)
        write_back([saved[f"average.{i}"] for i in range(len(self.average))], self.average)
        for k, optimiser in enumerate(self.optimisers):
            states: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in saved.items():
                if name.startswith(f"optimiser.{k}."):
                    _, _, i, key = name.split(".")
                    states.setdefault(int(i), {})[key] = value
            optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
        self.updated()
        return int(metadata["step"])


@torch.no_grad()
def write_back(values: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> None:
    """Copy values into parameters of the same sizes, whatever their shapes and dtypes.

    Example:
        >>> weight = torch.zeros(2, 2)
        >>> write_back([torch.arange(4)], [weight])
        >>> weight.tolist()
        [[0.0, 1.0], [2.0, 3.0]]
    """
    for value, parameter in zip(values, parameters, strict=True):
        parameter.copy_(value.view(parameter.shape))
