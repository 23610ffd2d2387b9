"""How every stage of the built-in model is trained: by one process or several, stopped and resumed at will.

Weights are held in float32 and computed in bfloat16; the loop is `dsas_core.utils.training`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from dsas_core.utils.training import Trainer, write_back

from .architecture import Preset
from .dataset import Dataset


@dataclass(frozen=True)
class TrainingRun:
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
    run: TrainingRun,
    stage: str,
    module: nn.Module,
    loss: Callable[[np.random.Generator], torch.Tensor],
    steps: int,
    learning_rate: float,
    ema_decay: float = 0.999,
) -> None:
    """Minimise a loss over the trainable parameters of a module; leave their moving average in it.

    The result is written to `<stage>.safetensors`, whose presence makes a second call load it and return.

    Args:
        run: this process's view of the training run.
        stage: the name of what is trained.
        module: in bfloat16 while this runs, in float32 in the end.
        loss: draws its own share of a batch and computes in the module's dtype.
        steps: of the whole stage.
        learning_rate: the highest.
        ema_decay: of the moving average.

    Raises:
        ArtifactError: a checkpoint of another run is in the folder.
    """
    finished = run.folder / f"{stage}.safetensors"
    if finished.is_file():
        module.load_state_dict(load_file(finished), strict=False)
        module.float().eval()
        return
    module.train().to(run.device)
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    copies = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}
    named = {name: copy.flatten(1) if copy.ndim > 1 else copy for name, copy in copies.items()}
    trained, masters = list(parameters.values()), list(named.values())
    matrices = [master for name, master in named.items() if _hidden(name, master)]
    others = [master for name, master in named.items() if not _hidden(name, master)]
    module.to(torch.bfloat16)

    def gradients(step: int) -> float:
        value = loss(run.rng(stage, step))
        value.backward()
        _gather_gradients(trained, masters, run.world)
        return value.item()

    def updated() -> None:
        _share_matrices(matrices, run)
        write_back(masters, trained)

    settings = {**asdict(run.preset), "seed": run.seed, "rank": run.rank, "world": run.world}
    trainer = Trainer(
        stage,
        masters,
        matrices[run.rank :: run.world],  # Newton-Schulz is dear on a CPU: each process does its part
        others,
        gradients,
        updated=updated,
        steps=steps,
        learning_rate=learning_rate,
        last_share=0.02,
        ema_decay=ema_decay,
        checkpoint=run.folder / f"{stage}.{run.rank}.checkpoint.safetensors",
        identity=json.dumps(settings),
        pace=(run.preset.batch, "pictures") if run.rank == 0 else None,
    )
    trainer.run()
    module.float()
    write_back(trainer.average, trained)
    module.eval()
    if run.rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, finished)
    wait(run)
    trainer.checkpoint.unlink(missing_ok=True)


def _hidden(name: str, master: torch.Tensor) -> bool:
    """Whether a parameter is for Muon: a matrix that is neither embedding nor input nor output."""
    outer = ("embed", "conv_in", "conv_out", "head", "encoder.layers.0.weight", "decoder.layers.0.weight", "down.0")
    return master.ndim == 2 and min(master.shape) >= 16 and not any(part in name for part in outer)


def _share_matrices(matrices: list[torch.Tensor], run: TrainingRun) -> None:
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


def _gather_gradients(trained: list[nn.Parameter], masters: list[torch.Tensor], world: int) -> None:
    """Move the gradients of bfloat16 parameters to their float32 masters, as the mean over the processes."""
    for parameter, master in zip(trained, masters, strict=True):
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        master.grad = gradient.float().reshape(master.shape)
        parameter.grad = None
    if world > 1:
        flat = torch.cat([master.grad.flatten() for master in masters if master.grad is not None])
        dist.all_reduce(flat)
        pieces = (flat / world).split([master.numel() for master in masters])
        for master, piece in zip(masters, pieces, strict=True):
            master.grad = piece.view(master.shape)


def wait(run: TrainingRun) -> None:
    """Until every process of the run is here."""
    if run.world > 1:
        dist.barrier()
