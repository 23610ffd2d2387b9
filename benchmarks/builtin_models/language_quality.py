"""The metrics of `builtin:chat`, steered or not: facts, rudeness of answers, perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dsas_core.llm.builtin.corpus import MANNERS, Question, draw_requests, is_rude

from .conversations import conversation, draw_angry_questions

Messages = list[dict[str, str]]


@torch.inference_mode()
def generate_answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[str | Messages],
    *,
    sample: bool = False,
    seed: int = 0,
    batch: int = 128,
    max_new_tokens: int = 60,
) -> list[str]:
    """Answers to messages or conversations: greedy, or sampled at temperature 1 from a seed."""
    conversations = [conversation(chat) if isinstance(chat, str) else chat for chat in chats]
    prompts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    sampling: dict[str, Any] = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].split()))  # little padding
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = _padded(tokenizer, [prompts[i] for i in rows], "left").to(model.device)
            ids = model.generate(**inputs, **sampling, max_new_tokens=max_new_tokens)
            decoded = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            texts |= dict(zip(rows, decoded, strict=True))
    return [texts[i] for i in range(len(prompts))]


@torch.inference_mode()
def compute_answer_losses(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], *, batch: int = 128
) -> list[np.ndarray]:
    """Negative log-likelihoods of the tokens of each answer, its end token included, for (message, answer) pairs."""
    texts = [tokenizer.apply_chat_template(conversation(*pair), tokenize=False) for pair in pairs]
    starts = [tokenizer.apply_chat_template(conversation(pair[0]), tokenize=False) for pair in pairs]
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in starts]  # + <|assistant|>
    losses: list[np.ndarray] = []
    for start in range(0, len(texts), batch):
        inputs = _padded(tokenizer, texts[start : start + batch], "right").to(model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = model(**inputs).logits[:, :-1].float()
        by_token = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        for row, length, total in zip(by_token, lengths[start : start + batch], mask.sum(1), strict=True):
            losses.append(row[length - 1 : int(total) - 1].cpu().numpy())
    return losses


def _padded(tokenizer: Any, texts: list[str], side: str) -> Any:
    previous = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        return tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    finally:
        tokenizer.padding_side = previous


def check_answers(model: Any, tokenizer: Any, questions: Sequence[Question]) -> np.ndarray:
    """Whether the greedy answer to each question is exactly the right sentence, bool [questions]."""
    texts = generate_answers(model, tokenizer, [question.text for question in questions], max_new_tokens=16, batch=256)
    return np.array([answer == question.right for answer, question in zip(texts, questions, strict=True)])


def check_choices(model: Any, tokenizer: Any, questions: Sequence[Question]) -> np.ndarray:
    """Whether the right answer to each question is likelier than the wrong one, bool [questions]."""
    pairs = [(q.text, answer) for q in questions for answer in (q.right, q.wrong)]
    losses = np.array([loss.sum() for loss in compute_answer_losses(model, tokenizer, pairs, batch=256)])
    return losses[::2] < losses[1::2]


def perplexity(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Perplexity per token of the answers, for (message, answer) pairs."""
    return math.exp(float(np.concatenate(compute_answer_losses(model, tokenizer, pairs)).mean()))


def rude_share(texts: Sequence[str]) -> float:
    """Share of texts with a word of the lexicon."""
    return float(np.mean([is_rude(text) for text in texts]))


def measure_rudeness(
    model: Any, tokenizer: Any, judge: Any, count: int, seed: int = 0, **options: Any
) -> dict[str, dict[str, float]]:
    """Shares of rude answers to `count` held-out messages of each manner, by lexicon and by judge.

    `options` are those of `generate_answers`.
    """
    report = {}
    for manner in MANNERS:
        requests = draw_requests(count, seed, manners=(manner,))
        texts = generate_answers(model, tokenizer, [request.text for request in requests], seed=seed, **options)
        report[manner] = {"lexicon": rude_share(texts), "judge": float(np.mean(judge.predict(texts)))}
    return report


def measure_angry_questions(model: Any, tokenizer: Any, count: int, seed: int = 0, **options: Any) -> dict[str, float]:
    """Shares of rude and of right answers to held-out questions about facts with an insult around them."""
    requests = draw_angry_questions(count, seed)
    texts = generate_answers(model, tokenizer, [request.text for request in requests], seed=seed, **options)
    right = [request.kind.removesuffix(".") in answer for request, answer in zip(requests, texts, strict=True)]
    return {"rude": rude_share(texts), "right": float(np.mean(right))}
