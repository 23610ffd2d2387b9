"""Reading with a model: activations, answers, predictions; and the unit of strength, chosen by what it answers.

No judge takes part. Whether an answer shows the target is read by the model's own eyes: unsteered, it reads the answer
behind a control prompt, and a logistic probe fitted on the source and target answers of the prompt file tells them
apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .. import methods
from ..calibration import Trial
from ..concept import Concept
from ..errors import DSASError
from ..hooks import Call, Describe, visit
from ..probes import LinearProbe
from ..probes.combine import pool
from ..sites import Site
from ..strangeness import Usual
from ..unit import choose, units_of
from .layers import device_of_input, ends_of, find_sites, positions_of, roots_of
from .prompts import Batch, Encoded, batched
from .steer import steer

#: share of the way from source answers to answers behind control prompts that counts as all that is wanted
ENOUGH = 0.95
#: by so much the eyes' logit must tell answers to source prompts from those to control prompts
TELLING = 1.0
#: tokens of an answer
LENGTH = 40


class Reader:
    """Runs a model over prompts in batches.

    Args:
        model: a transformers language model. pad: the token to pad with. batch: prompts per forward pass.
    """

    def __init__(self, model: nn.Module, pad: int, batch: int) -> None:
        self.model, self.pad, self.batch = model, pad, batch
        self.device = device_of_input(model)
        self.limit = positions_of(model)

    def batches(self, texts: Sequence[Encoded]) -> Iterator[Batch]:
        """The prompts in order, padded on the right."""
        for start in range(0, len(texts), self.batch):
            yield batched(texts[start : start + self.batch], self.pad)

    def describe(self, mask: torch.Tensor) -> dict[str, Describe]:
        """Every root reads the positions of `mask`."""
        here = mask.to(self.device)
        call = Call(torch.ones(len(here), device=self.device), torch.arange(len(here), device=self.device), None, here)
        return {root: lambda args, kwargs: call for root in roots_of(self.model)}

    @torch.no_grad()
    def run(self, piece: Batch) -> torch.Tensor:
        """Logits [rows, positions, vocabulary]; a model with an encoder reads the prompt there."""
        ids, mask = piece.ids.to(self.device), piece.mask.to(self.device)
        more = {"decoder_input_ids": ids[:, :1]} if "encoder" in roots_of(self.model) else {"use_cache": False}
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, **more).logits
        return logits

    def predictions(self, texts: Sequence[Encoded], written: bool = False) -> list[torch.Tensor]:
        """Log-probabilities of the next token at every token that counts, [tokens, vocabulary] by batch.

        With `written`, each answer is read on the cache of its prompt, as the model reads what it writes: gates that go
        by where a prompt ends are open there then. One text at a time.
        """
        found = []
        if written:
            for text in texts:
                counts = batched([text], self.pad).counted("all")[0] > 0
                found.append(self._written(text).float().log_softmax(-1)[counts.to(self.device)])
            return found
        for piece in self.batches(texts):
            logits = self.run(piece).float()
            found.append(logits.log_softmax(-1)[piece.counted("all").to(logits.device) > 0])
        return found

    @torch.no_grad()
    def _written(self, text: Encoded) -> torch.Tensor:
        """Logits [positions, vocabulary] of a prompt, and of the answer that is read behind it.

        The answer's first token comes alone: several would count as more of the prompt (`tokens`).
        """
        from transformers import DynamicCache

        ids, cache, logits = torch.tensor([text.ids], device=self.device), DynamicCache(), []
        for part in ids.tensor_split([text.answer, text.answer + 1], dim=1):
            if part.shape[1]:
                seen = cache.get_seq_length() + part.shape[1]
                mask = torch.ones(1, seen, dtype=torch.long, device=self.device)
                out = self.model(input_ids=part, attention_mask=mask, past_key_values=cache, use_cache=True)
                logits.append(out.logits[0])
        return torch.cat(logits)

    @torch.no_grad()
    def answers(self, texts: Sequence[Encoded]) -> list[tuple[int, ...]]:
        """What the model answers to each prompt's context, greedily: up to LENGTH tokens, end tokens cut off.

        Raises:
            DSASError: a context that leaves no room for an answer.
        """
        found = []
        model: Any = self.model
        ends = torch.tensor([self.pad, *ends_of(model)])
        for start in range(0, len(texts), self.batch):
            contexts = [Encoded(text.ids[: text.answer][::-1], 1) for text in texts[start : start + self.batch]]
            piece = batched(contexts, self.pad)  # reversed, so that the padding is on the left
            ids, mask = piece.ids.flip(1).to(self.device), piece.mask.flip(1).to(self.device)
            room = min(LENGTH, self.limit - ids.shape[1]) if self.limit else LENGTH
            if room < 1:
                raise DSASError(
                    f"a prompt fills all {self.limit} tokens that the model takes: shorten it to be answered"
                )
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=room,
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                return_dict_in_generate=False,
                pad_token_id=self.pad,
            )
            for row in out[:, ids.shape[1] :].cpu():
                stop = torch.isin(row, ends).nonzero()
                found.append(tuple(row[: int(stop[0]) if len(stop) else len(row)].tolist()))
        return found

    def states(self, texts: Sequence[Encoded]) -> torch.Tensor:
        """Mean activation over each answer at the output of every layer, side by side: float32 [n, layers x width]."""
        rows = []
        roots, sites = roots_of(self.model), find_sites(self.model, "block")
        for piece in self.batches(texts):
            seen = _Seen(piece.counted("answer").to(self.device))
            with visit(roots, sites, seen):
                self.run(piece)
            rows.append(torch.cat(seen.means, 1).cpu())
        return torch.cat(rows)


class _Seen:
    """A visitor that keeps means over the positions of a mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.means: list[torch.Tensor] = []

    def begin(self, root: str, call: Call) -> None:
        """Every row counts."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.means.append(pool(x.detach(), self.mask.to(x.device))[:, 0])


def choose_unit(
    trial: HeldOut, concept: Concept, drift: float, done: Callable[[], object]
) -> tuple[float, dict[str, Any]]:
    """The smallest unit that makes held-out source prompts answered as control prompts are; and what was tried."""
    if not trial.tells:
        return 1.0, trial.judged({"drift_limit": drift, "trials": [], "reached": False})
    unit, summary = choose(lambda unit: trial(concept, unit)[:2], drift, done, units_of(concept.method))
    return unit, trial.judged(summary)


class HeldOut:
    """Tries strengths on held-out prompts.

    Each answer goes some share of the way, by the eyes' logit, from the unsteered answers to source prompts to those to
    control prompts; shares are cut to [0, 1], so that one that goes too far does not stand in for one that stays
    behind. The effect is their mean over `ENOUGH`. Drift is the mean Kullback-Leibler divergence of the next token, in
    nats, over the tokens of control prompts. Reach is how far the answers move in what the eyes see, standardised, over
    how far they are from the target answers of the prompt file; strangeness how far they are from the answers that the
    eyes are fitted on, over how far others without steering are (`strangeness.Usual`).

    `tells` is False where the model answers source prompts much as it answers control prompts: nothing shows then when
    enough is done.

    Raises:
        DSASError: the unsteered model's predictions are not numbers.
    """

    def __init__(
        self, reader: Reader, fitting: Mapping[str, Sequence[Encoded]], held_out: Mapping[str, Sequence[Encoded]]
    ) -> None:
        self.reader, self.sources, self.contexts = reader, list(held_out["source"]), list(held_out["control"])

        def written(texts: Sequence[Encoded]) -> torch.Tensor:
            return self._read([text.ids[text.answer :] for text in texts])

        before, after = written(fitting["source"]), written(fitting["target"])
        fitted = methods.get("dsas", "gate").cross_fit(before, after, rank=16, scaler="std")
        self.eyes: LinearProbe = fitted.probe
        self.accuracy = fitted.evidence.balanced_accuracy
        self.said, wanted = self._read(reader.answers(self.sources)), written(held_out["target"])
        self.start = float(self._shown(self.said).mean())
        self.span = self.start - float(self._shown(self._read(reader.answers(self.contexts))).mean())
        self.spread = torch.cat([self.said, wanted]).std(0).clamp_min(1e-6)
        self.far = max(self._moved(wanted), 1e-6)
        self.usual = Usual(torch.cat([before, after]), torch.cat([self.said, wanted]))
        self.expected = {False: reader.predictions(self.contexts)}
        if any(bool(p.isnan().any()) for p in self.expected[False]):
            raise DSASError("the model's predictions are not numbers (NaN), unsteered: load it with another dtype")
        self.tells = self.span >= TELLING

    def __call__(self, concept: Concept, strength: float) -> Trial:
        """What a concept does at a map strength of either sign."""
        written = concept.by_prompt
        if written not in self.expected:
            self.expected[written] = self.reader.predictions(self.contexts, written)
        expected = self.expected[written]
        with steer(self.reader.model, {concept.with_unit(1.0): strength}):
            answers = self.reader.answers(self.sources)
            moved = self.reader.predictions(self.contexts, written)
        seen = self._read(answers)
        way = ((self.start - self._shown(seen)) / self.span).clamp(0, 1)
        spent = sum(_divergence(p, q) for p, q in zip(expected, moved, strict=True))
        drift = spent / max(1, sum(map(len, expected)))
        return Trial(float(way.mean()) / ENOUGH, drift, self._moved(seen) / self.far, self.usual.strangeness(seen))

    def judged(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """What `unit.choose` tells of its trials, and how far the eyes are to be trusted in it."""
        return {**summary, "answers_differ_by": self.span, "eyes_accuracy": self.accuracy}

    def _read(self, answers: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Answers behind contexts that ask for none of it, so that only they tell: float64 [n, features]."""
        behind = [self.contexts[i % len(self.contexts)] for i in range(len(answers))]
        pairs = zip(behind, answers, strict=True)
        texts = [Encoded((*text.ids[: text.answer], *said), text.answer) for text, said in pairs]
        return self.reader.states(texts).double()

    def _shown(self, seen: torch.Tensor) -> torch.Tensor:
        return self.eyes.logit(seen)[:, 0]

    def _moved(self, seen: torch.Tensor) -> float:
        """Median distance from the unsteered answers; of wanted ones, from each to its pair, where it has one."""
        count = min(len(seen), len(self.said))
        return float(((seen[:count] - self.said[:count]) / self.spread).norm(dim=1).median())


def _divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Sum of KL(p || q) over rows of log-probabilities; tokens that p rules out cost nothing."""
    return float(torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum())
