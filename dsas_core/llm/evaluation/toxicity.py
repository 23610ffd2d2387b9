"""Scorers of texts: how toxic (or rude, or whatever a classifier detects) each text is, in [0, 1].

`scorer("builtin:chat")` is the built-in one, `scorer("unitary/toxic-bert")` any text classifier of transformers;
`LexiconScorer` searches for words, and `FittedScorer.fit` trains a classifier on texts and labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from ...errors import DSASError, UnavailableError
from ...learning.prompts.prompt_set import MINIMUM
from ...model.loading import load_pretrained
from ..model.layers import max_positions

BUILTIN = ("builtin:chat",)
#: labels that mean "toxic", by precedence
TOXIC = (("toxic", "toxicity"), ("hate", "hateful", "hate-speech"), ("offensive",), ("rude",))
#: the most tokens of a text if neither model nor tokenizer states a limit
LIMIT = 512
#: logits [texts, labels] -> scores in [0, 1]
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(-1),
    "clamp": lambda logits: logits.clamp(0, 1),
}


class Scorer(Protocol):
    """A function of texts to scores in [0, 1], one for each text."""

    def __call__(self, texts: Sequence[str]) -> list[float]: ...


def scorer(name: str | Path | Scorer, **options: Any) -> Scorer:
    """A scorer by name.

    Args:
        name: "builtin:chat", or a folder or Hub name of a text classifier; a scorer is returned as it is.
        options: of `ClassifierScorer`.

    Raises:
        DSASError: no such scorer, or options for one that takes none.

    Example:
        >>> scorer(LexiconScorer(["fool"]))(["you fool"])
        [1.0]
    """
    if not isinstance(name, str | Path):
        return name
    if not str(name).startswith("builtin:"):
        return ClassifierScorer(name, **options)
    if str(name) not in BUILTIN:
        raise DSASError(f"no built-in scorer {name}; there is {', '.join(BUILTIN)}")
    if options:
        raise DSASError(f"{name} takes no options, found {', '.join(options)}")
    from ..builtin.judge import fit_judge

    return FittedScorer(fit_judge())


class LexiconScorer:
    """1 for a text that contains one of the words, 0 for others.

    Args:
        words: words or phrases, matched as whole words ("fool" is not in "foolish"), ignoring case.

    Raises:
        DSASError: no words.

    Example:
        >>> LexiconScorer(["fool"])(["You Fool!", "how foolish"])
        [1.0, 0.0]
    """

    def __init__(self, words: Collection[str]) -> None:
        phrases = sorted({r"\s+".join(map(re.escape, word.split())) for word in _check_texts(words, "words")} - {""})
        if not phrases:
            raise DSASError("a lexicon needs at least one word")
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [float(self._pattern.search(text) is not None) for text in _check_texts(texts)]


class FittedScorer:
    """The probability of class 1, by a scikit-learn classifier of texts.

    Args:
        classifier: fitted, with `predict_proba(texts)` and the classes 0 and 1.

    Example:
        >>> scores = FittedScorer.fit(["you fool"] * 8 + ["thank you"] * 8, [1] * 8 + [0] * 8)
        >>> rude, kind = scores(["a fool", "thank you all"])
        >>> kind < 0.5 < rude
        True
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier
        self._column = [int(label) for label in classifier.classes_].index(1)

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[int], *, seed: int = 0) -> Self:
        """Fit a logistic regression on TF-IDF of words and word pairs, in memory.

        Args:
            texts: the training texts.
            labels: 1 for what is to be detected, 0 for the rest.
            seed: of the solver.

        Raises:
            DSASError: not as many labels as texts, labels other than 0 and 1, or fewer than 8 of a class.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        texts = _check_texts(texts)
        if len(texts) != len(labels):
            raise DSASError(f"{len(texts)} texts, but {len(labels)} labels: expected one each")
        wrong = sorted({repr(label) for label in labels if label not in (0, 1)})
        if wrong:
            raise DSASError(f"labels are 0 and 1, found {', '.join(wrong[:5])}: compare scores with a threshold first")
        fewest = min((sum(int(label) == kind for label in labels), kind) for kind in (0, 1))
        if fewest[0] < MINIMUM:
            raise DSASError(f"{fewest[0]} texts have the label {fewest[1]}, at least {MINIMUM} are needed")
        classifier = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"),
            LogisticRegression(C=30.0, max_iter=1000, random_state=seed, class_weight="balanced"),
        )
        return cls(classifier.fit(texts, [int(label) for label in labels]))

    def __call__(self, texts: Sequence[str]) -> list[float]:
        texts = _check_texts(texts)
        return self.classifier.predict_proba(texts)[:, self._column].tolist() if texts else []


class ClassifierScorer:
    """The probability of one label, by a text classifier of transformers. Texts that are too long are truncated.

    Args:
        model: a folder or Hub name.
        label: its name or number; None takes the one that means "toxic", or LABEL_1 of two.
        function: "sigmoid", "softmax", or "clamp" for a regression in [0, 1]; None takes that of the model's problem
            type: softmax over several labels, unless it is multi-label.
        device: "auto" takes a GPU if there is one.
        batch: texts per forward pass.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        DSASError: no such model, no text classifier, or an ambiguous label.
    """

    def __init__(
        self,
        model: str | Path,
        label: str | int | None = None,
        *,
        function: str | None = None,
        device: str = "auto",
        batch: int = 32,
        **options: Any,
    ) -> None:
        if function is not None and function not in FUNCTIONS:
            raise DSASError(f"function {function!r}: expected one of {', '.join(FUNCTIONS)}")
        if batch < 1:
            raise DSASError(f"batch {batch}: expected 1 or more")
        self.model, self.tokenizer, missing = load_pretrained(
            model, "AutoModelForSequenceClassification", "AutoTokenizer", device, "text classifier", **options
        )
        if missing:
            raise UnavailableError(f"{model} is no text classifier: it lacks {missing[0]}, which would be random")
        config = self.model.config
        self.labels = {int(number): str(name) for number, name in config.id2label.items()}
        self.label = _find_label(self.labels, label, str(model))
        types = {"multi_label_classification": "sigmoid", "regression": "clamp"}
        self.function = function or types.get(config.problem_type, "softmax" if len(self.labels) > 1 else "sigmoid")
        if self.function == "softmax" and len(self.labels) == 1:
            raise DSASError(f"{model} has one label, of which softmax is always 1: use function='sigmoid'")
        if self.tokenizer.pad_token_id is None and self.tokenizer.eos_token_id is not None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if config.pad_token_id is None:  # a decoder's head locates the last token by it
            config.pad_token_id = self.tokenizer.pad_token_id
        self.batch = batch if config.pad_token_id is not None else 1

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[float]:
        texts = _check_texts(texts)
        scores = torch.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # by length, for little padding
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            inputs = self.tokenizer(
                [texts[i] for i in rows],
                padding=len(rows) > 1,
                truncation=True,
                max_length=_limit(self.model, self.tokenizer),
                return_tensors="pt",
            )
            logits = self.model(**inputs.to(self.model.device)).logits.float()
            scores[rows] = FUNCTIONS[self.function](logits)[:, self.label].cpu()
        if not bool(scores.isfinite().all()):
            raise DSASError(f"{self.model.name_or_path} gives scores that are not finite: load it with dtype='float32'")
        return scores.tolist()


def _check_texts(texts: Any, what: str = "texts") -> list[str]:
    items = list(texts)
    if wrong := [texts] if isinstance(texts, str) else [item for item in items if not isinstance(item, str)]:
        raise DSASError(f"{what}: expected a list of texts, found {wrong[0]!r}")
    return items


def _find_label(labels: dict[int, str], wanted: str | int | None, model: str) -> int:
    """The number of the wanted label, or of the one that means "toxic"."""
    known = ", ".join(f"{number}: {name}" for number, name in labels.items())
    numbers = {_normalise(name): number for number, name in labels.items()}
    if wanted is not None:
        if _normalise(str(wanted)) in numbers:
            return numbers[_normalise(str(wanted))]
        if str(wanted).isdecimal() and int(wanted) in labels:
            return int(wanted)
        raise DSASError(f"{model} has no label {wanted!r}; it has {known}")
    for names in TOXIC:
        matching = [name for name in names if name in numbers]
        if len(matching) == 1:
            return numbers[matching[0]]
        if matching:
            break
    if len(labels) == 1:
        return next(iter(labels))
    if set(numbers) == {"label-0", "label-1"}:
        return numbers["label-1"]
    raise DSASError(f"{model}: which label is meant? It has {known}; pass label=")


def _normalise(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def _limit(model: Any, tokenizer: Any) -> int:
    """The most tokens of a text; some tokenizers state none, and RoBERTa's first two positions hold no token."""
    positions = max_positions(model) or LIMIT + 2
    stated = int(tokenizer.model_max_length)
    return min(stated, positions) if stated < 10**6 else max(1, positions - 2)
