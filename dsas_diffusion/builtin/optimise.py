"""The training loop that every stage of the built-in model uses: one process or several, stopped and resumed at will.

Weights are held in float32 and computed in bfloat16; hidden matrices are optimised by Muon, everything else by AdamW.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from .architecture import Preset
from .dataset import Dataset

CHECKPOINT_STEPS = 200


@dataclass(frozen=True)
class Run:
    """One process's view of a training run."""

    preset: Preset
    folder: Path
    seed: int
    rank: int
    world: int
    device: torch.device

    @property
    def share(self) -> int:
        """Pictures per step for this process."""
        return self.preset.batch // self.world

    def rng(self, stage: str, step: int) -> np.random.Generator:
        """Randomness of one step: a resumed run continues as if it had never stopped."""
        return np.random.default_rng((self.seed, zlib.crc32(stage.encode()), step, self.rank))

    def dataset(self) -> Dataset:
        return Dataset(self.folder / "scenes")


def optimise(
    run: Run,
    stage: str,
    module: nn.Module,
    loss: Callable[[np.random.Generator], torch.Tensor],
    steps: int,
    learning_rate: float,
    ema_decay: float = 0.999,
) -> None:
    """Minimise `loss(rng)` over the trainable parameters of `module`; leave their moving average in it.

    `loss` draws its own share of a batch and computes in the module's dtype, bfloat16 while this runs. The result is
    written to `<stage>.safetensors`, whose presence makes a second call load it and return.
    """
    finished = run.folder / f"{stage}.safetensors"
    if finished.is_file():
        module.load_state_dict(load_file(finished), strict=False)
        module.float().eval()
        return
    module.train().to(run.device)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    masters = [p.detach().float().clone().flatten(1) if p.ndim > 1 else p.detach().float().clone() for _, p in trained]
    average = [master.clone() for master in masters]
    module.to(torch.bfloat16)
    matrices = [master for (name, _), master in zip(trained, masters, strict=True) if _hidden(name, master)]
    others = [master for (name, _), master in zip(trained, masters, strict=True) if not _hidden(name, master)]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    ]
    mine = matrices[run.rank :: run.world]  # Newton-Schulz is dear on a CPU: each process does its part
    if mine:
        optimisers.append(torch.optim.Muon(mine, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]

    checkpoint = run.folder / f"{stage}.{run.rank}.checkpoint"
    first = 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location=run.device, weights_only=True)
        first = saved["step"]
        for target, source in zip(masters + average, saved["masters"] + saved["average"], strict=True):
            target.copy_(source)
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        _spread(masters, trained)

    began = told_at = time.monotonic()
    recent = 0.0
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / (0.02 * steps + 1))
        pace = warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * pace
        value = loss(run.rng(stage, step))
        value.backward()
        _gather_gradients(trained, masters, run.world)
        nn.utils.clip_grad_norm_(masters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        _share_matrices(matrices, run)
        _spread(masters, trained)
        decay = min(ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, masters, 1 - decay)
        recent = 0.98 * recent + 0.02 * value.item() if step > first else value.item()
        now = time.monotonic()
        if run.rank == 0 and now - told_at > 20:
            speed = (step + 1 - first) * run.preset.batch / (now - began)
            left = (steps - step) * run.preset.batch / speed / 60
            print(f"{stage} {step + 1}/{steps} loss {recent:.4f} {speed:.0f}/s {left:.1f} min left", flush=True)
            told_at = now
        if (step + 1) % CHECKPOINT_STEPS == 0:
            state = {
                "step": step + 1,
                "masters": masters,
                "average": average,
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            }
            torch.save(state, checkpoint.with_suffix(".partial"))
            os.replace(checkpoint.with_suffix(".partial"), checkpoint)
    module.float()
    _spread(average, trained)
    module.eval()
    if run.rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, finished)
    wait(run)
    checkpoint.unlink(missing_ok=True)


def _hidden(name: str, master: torch.Tensor) -> bool:
    """Whether a parameter is for Muon: a matrix that is neither embedding nor input nor output."""
    outer = ("embed", "conv_in", "conv_out", "head", "encoder.layers.0.weight", "decoder.layers.0.weight", "down.0")
    return master.ndim == 2 and min(master.shape) >= 16 and not any(part in name for part in outer)


def _share_matrices(matrices: list[torch.Tensor], run: Run) -> None:
    """Bring in the matrices that the other processes have stepped."""
    if run.world == 1 or not matrices:
        return
    kept = [
        master.flatten() if i % run.world == run.rank else torch.zeros_like(master).flatten()
        for i, master in enumerate(matrices)
    ]
    flat = torch.cat(kept)
    dist.all_reduce(flat)
    for master, piece in zip(matrices, flat.split([master.numel() for master in matrices]), strict=True):
        master.copy_(piece.view(master.shape))


def _gather_gradients(trained: list[tuple[str, nn.Parameter]], masters: list[torch.Tensor], world: int) -> None:
    for (_, parameter), master in zip(trained, masters, strict=True):
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        master.grad = gradient.float().reshape(master.shape)
        parameter.grad = None
    if world > 1:
        flat = torch.cat([master.grad.flatten() for master in masters if master.grad is not None])
        dist.all_reduce(flat)
        pieces = (flat / world).split([master.numel() for master in masters])
        for master, piece in zip(masters, pieces, strict=True):
            master.grad = piece.view(master.shape)


def _spread(values: list[torch.Tensor], trained: list[tuple[str, nn.Parameter]]) -> None:
    with torch.no_grad():
        for value, (_, parameter) in zip(values, trained, strict=True):
            parameter.copy_(value.view(parameter.shape))


def wait(run: Run) -> None:
    """Until every process of the run is here."""
    if run.world > 1:
        dist.barrier()
