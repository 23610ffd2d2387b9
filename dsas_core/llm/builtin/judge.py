"""A second opinion on what is rude, beside the lexicon: a small classifier fitted on text outside the evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .corpus import draw_description, draw_requests, draw_talk, facts, rude


def fit_judge(seed: int = 1, count: int = 6000) -> Any:
    """A classifier of texts as rude or not: TF-IDF of words and word pairs, logistic regression.

    It is fitted on what training draws from, never on held-out contexts; use a seed that draws no evaluation. Answers
    of the help desk and small talk are told apart by tone. Calm messages and descriptions, which may hold words of the
    lexicon, and facts are not rude.

    Returns:
        A scikit-learn pipeline: `fit_judge().predict(texts)` is 1 for rude.
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
        texts.append((reply, int(rude(reply))))
    judge = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[a-z]+|[^a-z\s]"),
        LogisticRegression(C=30.0, max_iter=1000, random_state=seed),
    )
    return judge.fit([text for text, _ in texts], [label for _, label in texts])
