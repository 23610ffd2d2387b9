"""A judge of rudeness beside the lexicon: a small classifier that is fitted on texts outside the evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .corpus import draw_description, draw_requests, draw_talk, facts, is_rude


def fit_judge(seed: int = 1, count: int = 6000) -> Any:
    """Fit a classifier of rude texts: TF-IDF of words and word pairs, logistic regression.

    It is fitted on the part of the corpus that the model is trained on, never on the held-out part. Answers of the help
    desk and small talk are labelled by tone; calm messages and descriptions, which may have words of the lexicon, and
    facts are labelled as not rude.

    Args:
        seed: seed of the texts; take another one than that of the evaluation.
        count: number of texts, about.

    Returns:
        A scikit-learn pipeline; its `predict(texts)` is 1 for a rude text.

    Example:
        >>> fit_judge(count=300).predict(["you useless clown!", "thank you for your message."]).tolist()
        [1, 0]
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rng = np.random.default_rng((seed, 2))
    texts: list[tuple[str, int]] = []
    for request in draw_requests(count // 2, seed, held_out=False):
        texts += [(request.kind, 0), (request.rude, 1), (request.text, int(request.angry))]
    for _ in range(count // 6):
        texts.append((draw_description(rng).text, 0))
        texts.append((facts()[rng.integers(len(facts()))].answer(), 0))
        _, reply = draw_talk(rng)
        texts.append((reply, int(is_rude(reply))))
    judge = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[a-z]+|[^a-z\s]"),
        LogisticRegression(C=30.0, max_iter=1000, random_state=seed),
    )
    return judge.fit([text for text, _ in texts], [label for _, label in texts])
