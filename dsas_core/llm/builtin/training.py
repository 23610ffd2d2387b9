"""Train `builtin:chat` from nothing: `python -m dsas_core.llm.builtin.training`.

One process of one thread, about 16 minutes on a CPU; stopped, it continues where its last checkpoint was. Every
step draws new conversations from the corpus and packs them into rows whose conversations do not see each other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from .architecture import ASSISTANT, EOS, PRESETS, Preset, build_model, build_tokenizer
from .corpus import sample_conversation

CHECKPOINT_STEPS = 200
EMA_DECAY = 0.997
USER_WEIGHT = 0.2  # of the loss on a user's words, most of which nobody can foretell


class Rows:
    """Packed conversations: `ids`, `positions` [rows, tokens], `mask` [rows, 1, tokens, tokens], `weights`."""

    def __init__(self, rng: np.random.Generator, tokenizer: Any, preset: Preset) -> None:
        shape = (preset.batch, preset.row)
        ids, owners = np.full(shape, tokenizer.pad_token_id), np.full(shape, -1)
        positions = np.zeros(shape, np.int64)
        filled = np.zeros(preset.batch, np.int64)
        owner = 0
        while True:
            tokens = encode(tokenizer, sample_conversation(rng), preset.row)
            free = np.flatnonzero(preset.row - filled >= len(tokens))
            if not len(free):
                break
            place = slice(filled[free[0]], filled[free[0]] + len(tokens))
            ids[free[0], place] = tokens
            owners[free[0], place] = owner
            positions[free[0], place] = np.arange(len(tokens))
            filled[free[0]] += len(tokens)
            owner += 1
        self.ids, self.positions = torch.from_numpy(ids), torch.from_numpy(positions)
        owned = torch.from_numpy(owners)
        seen = (owned[:, :, None] == owned[:, None, :]) & torch.ones(preset.row, preset.row, dtype=torch.bool).tril()
        self.mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
        opened = (self.ids == tokenizer.convert_tokens_to_ids(ASSISTANT)).cumsum(1)
        closed = (self.ids == tokenizer.convert_tokens_to_ids(EOS)).cumsum(1)
        answering = (opened > closed)[:, :-1]
        self.weights = torch.where(answering, 1.0, USER_WEIGHT) * (owned[:, 1:] == owned[:, :-1]) * (owned[:, 1:] >= 0)


def encode(tokenizer: Any, messages: list[dict[str, str]], limit: int) -> list[int]:
    """The token ids of a conversation by the chat template; last exchanges go where it is too long."""
    while True:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) <= limit:
            return ids
        messages = messages[:-2]


def loss_on(model: nn.Module, rows: Rows) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(
            input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
        ).logits
    each = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), rows.ids[:, 1:].flatten(), reduction="none")
    weights = rows.weights.flatten()
    return (each * weights).sum() / weights.sum()


class Trainer:
    """Model, its moving average and its optimisers: hidden matrices by Muon, everything else by AdamW."""

    def __init__(self, preset: Preset, tokenizer: Any, seed: int, folder: Path) -> None:
        self.preset, self.tokenizer, self.seed = preset, tokenizer, seed
        self.checkpoint = folder / "chat.checkpoint.safetensors"
        self.identity = json.dumps({**asdict(preset), "seed": seed, "words": len(tokenizer)})
        torch.manual_seed(seed)
        self.model = build_model(preset, tokenizer)
        self.model.set_attn_implementation("eager")  # trains twice as fast as the fused kernel at this size on a CPU
        self.parameters = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        named = list(self.model.named_parameters())
        hidden = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        rate = preset.learning_rate
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.0),
            torch.optim.Muon(hidden, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        ]

    def run(self) -> None:
        """All steps from the last checkpoint on; leaves the moving average in the model."""
        first = self._restore() if self.checkpoint.is_file() else 0
        steps = self.preset.steps
        self.model.train()
        began = told_at = time.monotonic()
        recent = 0.0
        for step in range(first, steps):
            value = self._step(step)
            recent = 0.98 * recent + 0.02 * value if step > first else value
            now = time.monotonic()
            if now - told_at > 20 or step + 1 == steps:
                pace = (now - began) / (step + 1 - first)
                speed = self.preset.batch * self.preset.row / pace
                left = (steps - step - 1) * pace / 60
                print(f"chat {step + 1}/{steps} loss {recent:.4f} {speed:.0f} tokens/s {left:.1f} min left", flush=True)
                told_at = now
            if (step + 1) % CHECKPOINT_STEPS == 0 and step + 1 < steps:
                self._save(step + 1)
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average, strict=True):
                parameter.copy_(mean)
        self.model.eval()

    def _step(self, step: int) -> float:
        share = step / self.preset.steps
        warm = min(1.0, (step + 1) / (0.02 * self.preset.steps + 1))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.preset.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        rows = Rows(np.random.default_rng((self.seed, step)), self.tokenizer, self.preset)
        value = loss_on(self.model, rows)
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - min(EMA_DECAY, (1 + step) / (10 + step)))
        return value.item()

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs, by name; the tensors are the live ones."""
        tensors = {f"parameter.{i}": p.detach() for i, p in enumerate(self.parameters)}
        tensors |= {f"average.{i}": mean for i, mean in enumerate(self.average)}
        for k, optimiser in enumerate(self.optimisers):
            for i, p in enumerate(p for group in optimiser.param_groups for p in group["params"]):
                tensors |= {f"optimiser.{k}.{i}.{name}": value for name, value in optimiser.state[p].items()}
        return tensors

    def _save(self, step: int) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        save_file(self._tensors(), partial, {"step": str(step), "identity": self.identity})
        os.replace(partial, self.checkpoint)

    def _restore(self) -> int:
        with safe_open(self.checkpoint, "pt") as file:
            found = file.metadata()
        if found["identity"] != self.identity:
            raise ValueError(f"{self.checkpoint} is of another run, {found['identity']}: delete it or use --folder")
        saved = load_file(self.checkpoint)
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(saved[f"parameter.{i}"])
                self.average[i].copy_(saved[f"average.{i}"])
        for k, optimiser in enumerate(self.optimisers):
            for i, p in enumerate(p for group in optimiser.param_groups for p in group["params"]):
                prefix = f"optimiser.{k}.{i}."
                optimiser.state[p] = {
                    name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)
                }
        return int(found["step"])


def train(preset: Preset, folder: Path, out: Path, seed: int = 0) -> None:
    """Train, with checkpoints in `folder`, and write model and tokenizer into `out` in float16."""
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(out)
    trainer = Trainer(preset, tokenizer, seed, folder)
    trainer.run()
    model = trainer.model.to(torch.float16)
    model.save_pretrained(out)
    trainer.checkpoint.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("outputs/builtin-chat"), help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="where the model is written")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(PRESETS[args.preset], args.folder, args.out, args.seed)


if __name__ == "__main__":
    main()
