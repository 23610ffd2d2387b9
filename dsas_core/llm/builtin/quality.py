"""What `builtin:chat` is measured by, steered or not: facts, rudeness of answers, perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .corpus import MANNERS, Question, conversation, draw_angry_questions, draw_requests, rude

Messages = list[dict[str, str]]


@torch.inference_mode()
def answers(
    model: Any,
    tokenizer: Any,
    chats: Sequence[str | Messages],
    *,
    sample: bool = False,
    seed: int = 0,
    batch: int = 128,
    max_new_tokens: int = 60,
) -> list[str]:
    """What the model answers to messages or conversations: greedily, or sampled at temperature 1 from a seed."""
    conversations = [conversation(chat) if isinstance(chat, str) else chat for chat in chats]
    prompts = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    how: dict[str, Any] = {"do_sample": True, "top_k": 0} if sample else {"do_sample": False}
    by_prompt: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].split()))  # little padding
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            inputs = _padded(tokenizer, [prompts[i] for i in rows], "left").to(model.device)
            ids = model.generate(**inputs, **how, max_new_tokens=max_new_tokens)
            texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            by_prompt |= dict(zip(rows, texts, strict=True))
    return [by_prompt[i] for i in range(len(prompts))]


@torch.inference_mode()
def answer_losses(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], *, batch: int = 128
) -> list[np.ndarray]:
    """Negative log-likelihood of every token of the answer, its end included, for (message, answer) pairs."""
    texts = [tokenizer.apply_chat_template(conversation(*pair), tokenize=False) for pair in pairs]
    starts = [tokenizer.apply_chat_template(conversation(pair[0]), tokenize=False) for pair in pairs]
    lengths = [len(tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in starts]  # + <|assistant|>
    losses: list[np.ndarray] = []
    for start in range(0, len(texts), batch):
        inputs = _padded(tokenizer, texts[start : start + batch], "right").to(model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = model(**inputs).logits[:, :-1].float()
        each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        for row, length, total in zip(each, lengths[start : start + batch], mask.sum(1), strict=True):
            losses.append(row[length - 1 : int(total) - 1].cpu().numpy())
    return losses


def _padded(tokenizer: Any, texts: list[str], side: str) -> Any:
    kept = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        return tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    finally:
        tokenizer.padding_side = kept


def right_answers(model: Any, tokenizer: Any, questions: Sequence[Question]) -> np.ndarray:
    """Per question, whether the greedy answer is exactly the right sentence."""
    given = answers(model, tokenizer, [question.text for question in questions], max_new_tokens=16, batch=256)
    return np.array([answer == question.right for answer, question in zip(given, questions, strict=True)])


def right_choices(model: Any, tokenizer: Any, questions: Sequence[Question]) -> np.ndarray:
    """Per question, whether the right answer is likelier than the wrong one."""
    pairs = [(q.text, answer) for q in questions for answer in (q.right, q.wrong)]
    losses = np.array([loss.sum() for loss in answer_losses(model, tokenizer, pairs, batch=256)])
    return losses[::2] < losses[1::2]


def perplexity(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Per token of the answers."""
    return math.exp(float(np.concatenate(answer_losses(model, tokenizer, pairs)).mean()))


def rude_share(texts: Sequence[str]) -> float:
    """How many texts hold a word of the lexicon."""
    return float(np.mean([rude(text) for text in texts]))


def rude_answers(
    model: Any, tokenizer: Any, judge: Any, count: int, seed: int = 0, **options: Any
) -> dict[str, dict[str, float]]:
    """Shares of rude answers to `count` held-out messages a manner, by lexicon and by judge; options of `answers`."""
    report = {}
    for manner in MANNERS:
        requests = draw_requests(count, seed, manners=(manner,))
        given = answers(model, tokenizer, [request.text for request in requests], seed=seed, **options)
        report[manner] = {"lexicon": rude_share(given), "judge": float(np.mean(judge.predict(given)))}
    return report


def angry_questions(model: Any, tokenizer: Any, count: int, seed: int = 0, **options: Any) -> dict[str, float]:
    """Held-out questions about facts with an insult around them: how many answers are rude, and how many are right."""
    requests = draw_angry_questions(count, seed)
    given = answers(model, tokenizer, [request.text for request in requests], seed=seed, **options)
    right = [request.kind.removesuffix(".") in answer for request, answer in zip(requests, given, strict=True)]
    return {"rude": rude_share(given), "right": float(np.mean(right))}
