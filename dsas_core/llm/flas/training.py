"""Training a network of FLAS from examples of many concepts; the language model stays as it is.

    loss = cross-entropy of the answers, behind a flow of time T towards their concepts, T uniform in [0.5, 2]
           + 0.1 · mean cosine of the velocities of rows with different concepts

A velocity is that of the last Euler step, meaned over the positions of a row: the second term keeps the network from
one direction for all. AdamW, warm-up and then a cosine to 0, gradients clipped to length 1. (arXiv 2605.05892)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...errors import DSASError, PromptError, quote
from ...learning.joint.runs import frozen
from ...model.hooks import Call, visit
from ...model.sites import Site
from ...utils.numbers import number
from ...utils.progress import progress_bar
from ...utils.versions import versions
from ..model.conversations import Encoded, pad_batch, pad_token
from ..model.layers import device_of_input, max_positions, roots_of
from ..steering.answer import encode_message
from ..steering.steer import steered
from .examples import Example, load_examples
from .frame import Frame, encode
from .network import Network
from .start import start

#: as the authors have it
DIVERSITY, LONGEST, WEIGHT_DECAY, CLIP = 0.1, 256, 0.01, 1.0


@dataclass(frozen=True)
class Settings:
    """The settings of a training.

    Args:
        steps: of the optimizer.
        batch: rows of a step.
        rate: highest learning rate.
        times: between which flow times are drawn.
        euler_steps: of each flow.
        diversity: weight of the second term of the loss.
        warm_up: share of the steps in which the rate rises.
        seed: of the batches, the flow times and the beginning.
    """

    steps: int = 2000
    batch: int = 16
    rate: float = 5e-5
    times: tuple[float, float] = (0.5, 2.0)
    euler_steps: int = 3
    diversity: float = DIVERSITY
    warm_up: float = 0.025
    seed: int = 0

    def __post_init__(self) -> None:
        for kind, count in (("count", self.steps), ("batch", self.batch), ("seed", self.seed)):
            number(kind, count)
        number("steps", self.euler_steps)
        shares = {"rate": self.rate, "diversity": self.diversity, "warm_up": self.warm_up}
        for name, value in shares.items():
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise DSASError(f"{name} {quote(value)}: expected a number from 0 to 1")
        times = self.times if isinstance(self.times, tuple | list) and len(self.times) == 2 else (0, 0)
        if not all(type(time) in (int, float) for time in times) or not 0 < times[0] <= times[1] <= 100:
            raise DSASError(f"times {quote(self.times)}: expected two numbers above 0, the lower first")


@dataclass(frozen=True)
class _Row:
    """An example in tokens, and the number of its concept."""

    tokens: Encoded
    concept: int


def train(
    model: nn.Module,
    tokenizer: Any,
    concepts: str | Path | Mapping[str, Sequence[Any]],
    *,
    network: Network | None = None,
    layer: int | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> Network:
    """Train one network for many concepts, from prompts with answers that show them.

    The model is frozen, and is left exactly as it was, also where training fails.

    Args:
        model: the language model, not steered.
        tokenizer: its tokenizer.
        concepts: text of a concept -> examples (prompt, answer), or a YAML file with these, see `examples`.
        network: to go on with; None begins with a copy of the layer.
        layer: number of the layer whose output is moved; None for three quarters of the depth.
        show_progress: whether to show a progress bar.
        settings: see `Settings`; defaults are the authors', but for the number of steps.

    Returns:
        The network, in float32 on the CPU; `save` writes it. Its settings have the losses of the training.

    Raises:
        PromptError: examples that are none, or too long for the model.
        DSASError: a setting out of bounds, or a model that is steered.
        UnsupportedError: a model of a kind that a network cannot be built for.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> examples = {"be kind": [("hello", "hello, dear")], "be brief": [("hello", "hi")]}
        >>> train(model, tokenizer, examples, layer=3, steps=2, batch=2, show_progress=False)
        Network(layer 3 of 'builtin:chat', 1 block, 437,040 numbers)
    """
    unknown = set(settings) - set(Settings.__dataclass_fields__)
    if unknown:
        raise DSASError(f"training has no setting {min(unknown)!r}; it has {', '.join(Settings.__dataclass_fields__)}")
    chosen = Settings(**settings)
    if steered(model):
        raise DSASError("the model is steered, and a network is trained on it as it is: llm.detach(model) first")
    examples = load_examples(concepts)
    rows = _encode_rows(model, tokenizer, examples)
    network = start(model, layer, seed=chosen.seed) if network is None else network
    if layer not in (None, network.layer):
        raise DSASError(f"the network is of layer {network.layer}, and layer is {layer}: leave one of them out")
    frame = network.frame(model)
    with frozen({"model": model}), torch.enable_grad():
        trainer = _Trainer(model, network, frame, encode(model, tokenizer, list(examples)), chosen)
        losses = trainer.run(rows, pad_token(tokenizer), show_progress)
    weights = {name: tensor.detach().cpu() for name, tensor in trainer.weights.items()}
    told: dict[str, Any] = {
        "n_steps": chosen.euler_steps,
        "T_min": chosen.times[0],
        "T_max": chosen.times[1],
        "lr": chosen.rate,
    }
    told |= {
        "total_steps": chosen.steps,
        "batch_size": chosen.batch,
        "div_weight": chosen.diversity,
        "seed": chosen.seed,
    }
    told |= {"concepts": len(examples), "examples": len(rows), "losses": losses, "versions": versions("transformers")}
    return replace(network, weights=weights, settings={**network.settings, **told})


def _encode_rows(model: nn.Module, tokenizer: Any, examples: Mapping[str, Sequence[Example]]) -> list[_Row]:
    """The examples in tokens: a prompt by the chat template, the answer, and the end token."""
    limit = min(LONGEST, max_positions(model) or LONGEST)
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    rows = []
    for concept, (text, pairs) in enumerate(examples.items()):
        for prompt, answer in pairs:
            before = encode_message(tokenizer, prompt).input_ids[0].tolist()
            ids = [*before, *tokenizer(answer, add_special_tokens=False).input_ids, *end]
            if len(ids) > limit:
                raise PromptError(
                    f"concept {quote(text)}: prompt {quote(prompt, 40)} and its answer have {len(ids)} tokens, "
                    f"expected up to {limit}: shorten them"
                )
            rows.append(_Row(Encoded(tuple(ids), len(before)), concept))
    return rows


class _Trainer:
    """Takes the steps of a training.

    Attributes:
        weights: those of the network, in training.
    """

    def __init__(
        self, model: nn.Module, network: Network, frame: Frame, concepts: Sequence[torch.Tensor], settings: Settings
    ) -> None:
        self._model, self._network, self._frame, self._settings = model, network, frame, settings
        self._device = device_of_input(model)
        self._concepts = [tokens.to(self._device) for tokens in concepts]
        self.weights = {
            name: tensor.detach().float().to(self._device).clone().requires_grad_()
            for name, tensor in network.weights.items()
        }
        self._random = torch.Generator().manual_seed(settings.seed)

    def run(self, rows: Sequence[_Row], pad: int, show_progress: bool) -> list[float]:
        """Train, and return the losses of the answers, meaned over each twentieth of the steps."""
        steps, losses = self._settings.steps, []
        optimizer = torch.optim.AdamW(self.weights.values(), self._settings.rate, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        with progress_bar(steps, "training", show_progress) as bar:
            for batch in self._batches(rows):
                answers, likeness = self._loss(batch, pad)
                (answers + self._settings.diversity * likeness).backward()
                nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(float(answers.detach()))
                bar.update()
        size = -(-steps // 20)
        parts = [losses[i : i + size] for i in range(0, steps, size)]
        return [round(sum(part) / len(part), 4) for part in parts]

    def _share_of_rate(self, step: int) -> float:
        warm = self._settings.warm_up * self._settings.steps
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(self._settings.steps - warm, 1)))

    def _batches(self, rows: Sequence[_Row]) -> Iterator[list[_Row]]:
        """Every row once, in a new order, then again."""
        waiting: list[int] = []
        for _ in range(self._settings.steps):
            while len(waiting) < self._settings.batch:
                waiting += torch.randperm(len(rows), generator=self._random).tolist()
            yield [rows[i] for i in waiting[: self._settings.batch]]
            del waiting[: self._settings.batch]

    def _loss(self, rows: Sequence[_Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy of the answers, and how alike the velocities of different concepts are."""
        batch = pad_batch([row.tokens for row in rows], pad)
        ids, mask = batch.ids.to(self._device), batch.mask.to(self._device)
        low, high = self._settings.times
        time = low + (high - low) * float(torch.rand((), generator=self._random))
        tokens, hidden = self._stack([row.concept for row in rows])
        flow = self._network.flow(self.weights, self._frame, tokens, hidden, steps=self._settings.euler_steps)
        mover = _Mover(flow, time, mask.float())
        with visit(roots_of(self._model), [self._frame.site], mover):
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        labels = torch.full_like(ids, -100)
        for row, (first, end) in enumerate(batch.answers):
            labels[row, first:end] = ids[row, first:end]
        answers = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return answers, _likeness(mover.velocity, mask.float(), [row.concept for row in rows])

    def _stack(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of concepts, [rows, tokens, width], and which of them are padding, [rows, tokens]."""
        chosen = [self._concepts[number] for number in numbers]
        stacked = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        lengths = torch.tensor([len(tokens) for tokens in chosen], device=self._device)
        return stacked, (torch.arange(stacked.shape[1], device=self._device) >= lengths[:, None]).float()


class _Mover:
    """A visitor that lets a flow move all tokens but the first, as steering does."""

    def __init__(self, flow: Any, time: float, mask: torch.Tensor) -> None:
        self._flow, self._time = flow, time
        self._first = torch.zeros_like(mask)
        self._first[:, 0] = 1
        self._mask = mask - self._first
        self.velocity = torch.empty(0)

    def begin(self, root: str, call: Call) -> None:
        """Nothing is to be done."""

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        begin = self._flow.begin(len(x), x.device)
        moved, _, self.velocity = self._flow.flow(wide, self._time, self._mask, self._first, begin)
        return torch.where(self._mask[..., None] > 0, moved, wide).to(x.dtype)


def _likeness(velocity: torch.Tensor, mask: torch.Tensor, concepts: Sequence[int]) -> torch.Tensor:
    """The mean cosine of the mean velocities of rows with different concepts; 0 where there are none."""
    means = (velocity * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    units = functional.normalize(means, dim=-1)
    numbers = torch.tensor(concepts, device=velocity.device)
    differ = (numbers[:, None] != numbers).float()
    return (units @ units.T * differ).sum() / differ.sum().clamp_min(1)
