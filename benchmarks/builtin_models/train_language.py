"""Train `builtin:chat` from scratch: `python -m benchmarks.builtin_models.train_language`.

One process of one thread, about 16 minutes on a CPU; resumes from its last checkpoint. Every step draws new
conversations from the corpus and packs them into rows; conversations in a row do not attend to each other.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dsas_core.llm.model.load import BUILTIN

from .conversations import sample_conversation
from .language_architecture import ASSISTANT, EOS, PRESETS, Preset, build_model, build_tokenizer
from .trainer import Trainer, write_back

USER_WEIGHT = 0.2  # of the loss on a user's words, most of which cannot be predicted


class PackedConversations:
    """A batch of training: several conversations in each row.

    Args:
        rng: generator that draws the conversations.
        tokenizer: tokenizer with the chat template.
        preset: its `batch` is the number of rows, its `row` the number of tokens in each.

    Attributes:
        ids: int64 [rows, tokens].
        positions: int64 [rows, tokens], position of each token in its conversation.
        mask: float [rows, 1, tokens, tokens], added to the attention scores.
        weights: float [rows, tokens - 1], weights of the loss of each next token.
    """

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
        causal = torch.ones(preset.row, preset.row, dtype=torch.bool).tril()
        visible = (owned[:, :, None] == owned[:, None, :]) & causal
        self.mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[:, None]
        opened = (self.ids == tokenizer.convert_tokens_to_ids(ASSISTANT)).cumsum(1)
        closed = (self.ids == tokenizer.convert_tokens_to_ids(EOS)).cumsum(1)
        answering = (opened > closed)[:, :-1]
        self.weights = torch.where(answering, 1.0, USER_WEIGHT) * (owned[:, 1:] == owned[:, :-1]) * (owned[:, 1:] >= 0)


def encode(tokenizer: Any, messages: list[dict[str, str]], limit: int) -> list[int]:
    """The token ids of a conversation by the chat template; its last exchanges are dropped while it is too long."""
    while True:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if len(ids) <= limit:
            return ids
        messages = messages[:-2]


def compute_loss(model: nn.Module, rows: PackedConversations) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(
            input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
        ).logits
    by_token = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), rows.ids[:, 1:].flatten(), reduction="none")
    weights = rows.weights.flatten()
    return (by_token * weights).sum() / weights.sum()


def train(preset: Preset, folder: Path, out: Path, seed: int = 0) -> None:
    """Train, and write model and tokenizer into a folder.

    Args:
        preset: sizes and number of steps.
        folder: where checkpoints are kept.
        out: where the model is written, in float16.
        seed: seed of weights and conversations.

    Raises:
        ArtifactError: the folder holds a checkpoint of a run with other settings.
    """
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(out)
    torch.manual_seed(seed)
    model = build_model(preset, tokenizer)
    model.set_attn_implementation("eager")  # trains twice as fast as the fused kernel at this size on a CPU
    model.train()
    parameters = dict(model.named_parameters())
    matrices = {name for name, parameter in parameters.items() if parameter.ndim == 2 and "embed" not in name}

    def compute_gradients(step: int) -> float:
        loss = compute_loss(model, PackedConversations(np.random.default_rng((seed, step)), tokenizer, preset))
        loss.backward()
        return loss.item()

    trainer = Trainer(
        "chat",
        list(parameters.values()),
        [parameter for name, parameter in parameters.items() if name in matrices],
        [parameter for name, parameter in parameters.items() if name not in matrices],
        compute_gradients,
        steps=preset.steps,
        learning_rate=preset.learning_rate,
        last_share=0.01,
        ema_decay=0.997,
        checkpoint=folder / "chat.checkpoint.safetensors",
        identity=json.dumps({**asdict(preset), "seed": seed, "words": len(tokenizer)}),
        throughput=(preset.batch * preset.row, "tokens"),
    )
    trainer.run()
    write_back(trainer.average, trainer.parameters)
    model.eval().to(torch.float16).save_pretrained(out)
    trainer.checkpoint.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("outputs/builtin-chat"), help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, default=BUILTIN["builtin:chat"], help="where the model is written")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(PRESETS[args.preset], args.folder, args.out, args.seed)


if __name__ == "__main__":
    main()
