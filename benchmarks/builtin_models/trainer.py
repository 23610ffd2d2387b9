"""The training loop of the built-in models: resumable, with an exponential moving average of the parameters.

Hidden matrices are optimised by Muon, all other parameters by AdamW. The learning rate warms up linearly over the first
2 % of the steps and then decays along a cosine.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dsas_core.errors import ArtifactError

CHECKPOINT_STEPS = 200
REPORT_SECONDS = 20.0


class Trainer:
    """Trains float32 parameters, from the last checkpoint on.

    Args:
        name: name of the training stage, printed before each line of progress.
        parameters: all parameters that are trained, float32.
        matrices: parameters that Muon optimises in this process; several processes may divide them.
        others: parameters that AdamW optimises.
        compute_gradients: called with the number of the step; sets the gradients and returns the loss.
        after_update: called when the parameters have changed.
        steps: number of steps of the whole training.
        learning_rate: highest learning rate.
        last_share: last learning rate, as a share of the highest.
        ema_decay: decay of the moving average; smaller in the first steps.
        checkpoint: a safetensors file, written every CHECKPOINT_STEPS steps.
        identity: settings of the run; kept in the checkpoint and compared when it is restored.
        throughput: items per step and their unit, for the lines of progress; None prints no progress.
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[torch.Tensor],
        matrices: Sequence[torch.Tensor],
        others: Sequence[torch.Tensor],
        compute_gradients: Callable[[int], float],
        after_update: Callable[[], None] | None = None,
        *,
        steps: int,
        learning_rate: float,
        last_share: float,
        ema_decay: float,
        checkpoint: Path,
        identity: str,
        throughput: tuple[int, str] | None = None,
    ) -> None:
        self.name, self.parameters = name, list(parameters)
        self._compute_gradients, self._after_update = compute_gradients, after_update
        self.steps, self.learning_rate, self.last_share, self.ema_decay = steps, learning_rate, last_share, ema_decay
        self.checkpoint, self.identity, self.throughput = checkpoint, identity, throughput
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(list(others), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
        ]
        if matrices:
            muon = torch.optim.Muon(list(matrices), learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self.optimisers.append(muon)

    def run(self) -> None:
        """Run the steps that are left.

        Raises:
            ArtifactError: the checkpoint has been written by a run with other settings.
        """
        first = self._restore() if self.checkpoint.is_file() else 0
        started = reported = time.monotonic()
        mean_loss = 0.0
        for step in range(first, self.steps):
            loss = self._step(step)
            mean_loss = 0.98 * mean_loss + 0.02 * loss if step > first else loss
            now = time.monotonic()
            if self.throughput is not None and (now - reported > REPORT_SECONDS or step + 1 == self.steps):
                seconds = (now - started) / (step + 1 - first)
                speed, left = self.throughput[0] / seconds, (self.steps - step - 1) * seconds / 60
                print(
                    f"{self.name} {step + 1}/{self.steps} loss {mean_loss:.4f} {speed:.0f} {self.throughput[1]}/s "
                    f"{left:.1f} min left",
                    flush=True,
                )
                reported = now
            if (step + 1) % CHECKPOINT_STEPS == 0 and step + 1 < self.steps:
                self._save(step + 1)

    def _step(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / (0.02 * self.steps + 1))
        decay = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate * warmup * (self.last_share + (1 - self.last_share) * decay)
        loss = self._compute_gradients(step)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if self._after_update is not None:
            self._after_update()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - min(self.ema_decay, (1 + step) / (10 + step)))
        return loss

    def _save(self, step: int) -> None:
        tensors = {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        tensors |= {f"average.{i}": average for i, average in enumerate(self.average)}
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
        """Restore the checkpoint; returns the number of the next step."""
        with safe_open(self.checkpoint, "pt") as file:
            metadata = file.metadata()
        if metadata["identity"] != self.identity:
            raise ArtifactError(
                f"{self.checkpoint} is of another run, {metadata['identity']}, not of {self.identity}: "
                "delete it or use --folder"
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
        if self._after_update is not None:
            self._after_update()
        return int(metadata["step"])


@torch.no_grad()
def write_back(values: Sequence[torch.Tensor], parameters: Sequence[torch.Tensor]) -> None:
    """Copy values into parameters with the same numbers of elements; shapes and dtypes may differ.

    Example:
        >>> weight = torch.zeros(2, 2)
        >>> write_back([torch.arange(4)], [weight])
        >>> weight.tolist()
        [[0.0, 1.0], [2.0, 3.0]]
    """
    for value, parameter in zip(values, parameters, strict=True):
        parameter.copy_(value.view(parameter.shape))
