"""Scorers: words, a fitted classifier, the built-in one, and classifiers of transformers from tiny random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.builtin_models.language_architecture import build_tokenizer
from dsas_core import DSASError
from dsas_core.llm.evaluation.toxicity import ClassifierScorer, FittedScorer, LexiconScorer, scorer
from tests.fixtures.language_models import tiny

TEXTS = ["you are a fool", "thank you for your message", "where is my parcel, you clown? i want my money back", "no"]


def save_classifier(
    folder: Path, labels: list[str], problem: str | None = None, kind: str = "Bert", **more: Any
) -> tuple[Any, Any]:
    """A tiny random classifier and the built-in tokenizer, saved; returns both."""
    import transformers

    tokenizer = build_tokenizer(folder)
    tokenizer.padding_side = "right"  # as the tokenizers of encoders pad
    tokenizer.save_pretrained(folder)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem,
        **more,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    model.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("binary")
    save_classifier(folder, ["non-toxic", "toxic"])
    return folder


# ---- words ------------------------------------------------------------------------------------------------------


def test_words_match_whole() -> None:
    score = LexiconScorer(["fool", "go  away", "c++", "idiot"])
    texts = ["You FOOL!", "foolish", "please go\naway", "go far away", "i write c++.", "", "idiots"]
    assert score(texts) == [1, 0, 1, 0, 1, 0, 0]
    assert score([]) == []


@pytest.mark.parametrize("words", [[], ["  "]])
def test_a_lexicon_needs_words(words: list[str]) -> None:
    with pytest.raises(DSASError, match="needs at least one word"):
        LexiconScorer(words)


# ---- fitted -----------------------------------------------------------------------------------------------------

RUDE = [f"you {word} of a clerk number {i}" for i in range(6) for word in ("fool", "clown")]
KIND = [f"thank {word} for the answer number {i}" for i in range(6) for word in ("you", "them")]


def test_a_fitted_scorer_tells_new_texts() -> None:
    score = FittedScorer.fit(RUDE + KIND, [1] * len(RUDE) + [0] * len(KIND))
    rude, kind = score(["what a clown", "thank you so much"])
    assert 0 <= kind < 0.5 < rude <= 1
    assert score([]) == []
    turned = FittedScorer.fit(RUDE + KIND, [False] * len(RUDE) + [True] * len(KIND))
    assert turned(["what a clown"])[0] < 0.5


@pytest.mark.parametrize(
    ("texts", "labels", "match"),
    [
        (RUDE, [1], "12 texts, but 1 labels: expected one each"),
        (RUDE + KIND, [0.3] * 12 + [1] * 12, "labels are 0 and 1, found 0.3: compare scores with a threshold first"),
        (RUDE + KIND, [1] * 24, "0 texts have the label 0, at least 8 are needed"),
        (RUDE + KIND[:3], [1] * 12 + [0] * 3, "3 texts have the label 0, at least 8 are needed"),
        ("text", [1], "texts: expected a list of texts, found 'text'"),
        ([*RUDE, None], [1] * 13, "texts: expected a list of texts, found None"),
    ],
)
def test_what_cannot_be_fitted(texts: Any, labels: Any, match: str) -> None:
    with pytest.raises(DSASError, match=match):
        FittedScorer.fit(texts, labels)


def test_the_built_in_scorer() -> None:
    score = scorer("builtin:chat")
    rude, kind = score(["find it yourself, you fool.", "thank you, we will send your parcel today."])
    assert kind < 0.2 < 0.8 < rude


def test_scorers_by_name(binary: Path) -> None:
    own = LexiconScorer(["fool"])
    assert scorer(own) is own
    assert isinstance(scorer(binary, batch=2), ClassifierScorer)
    with pytest.raises(DSASError, match="no built-in scorer builtin:poet; there is builtin:chat"):
        scorer("builtin:poet")
    with pytest.raises(DSASError, match="builtin:chat takes no options, found batch"):
        scorer("builtin:chat", batch=2)


# ---- classifiers ------------------------------------------------------------------------------------------------


def logits_of(model: Any, tokenizer: Any, texts: list[str] = TEXTS) -> torch.Tensor:
    """[texts, labels], one text at a time."""
    with torch.inference_mode():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


@pytest.mark.parametrize(
    ("labels", "problem", "settings", "expected"),
    [
        (["non-toxic", "toxic"], None, {}, lambda x: x.softmax(-1)[:, 1]),
        (["TOXIC", "neutral"], "single_label_classification", {}, lambda x: x.softmax(-1)[:, 0]),
        (["LABEL_0", "LABEL_1"], None, {}, lambda x: x.softmax(-1)[:, 1]),
        (["nothate", "hate"], None, {}, lambda x: x.softmax(-1)[:, 1]),
        (["insult", "toxicity", "threat"], "multi_label_classification", {}, lambda x: x.sigmoid()[:, 1]),
        (["insult", "toxic", "hate"], None, {"function": "sigmoid"}, lambda x: x.sigmoid()[:, 1]),
        (["insult", "toxic", "threat"], None, {"label": "Threat"}, lambda x: x.softmax(-1)[:, 2]),
        (["insult", "toxic", "identity_hate"], None, {"label": "identity hate"}, lambda x: x.softmax(-1)[:, 2]),
        (["calm", "angry"], None, {"label": 1}, lambda x: x.softmax(-1)[:, 1]),
        (["LABEL_0"], None, {}, lambda x: x.sigmoid()[:, 0]),
        (["LABEL_0"], "regression", {}, lambda x: x.clamp(0, 1)[:, 0]),
    ],
)
def test_the_label_and_its_probability(
    tmp_path: Path, labels: list[str], problem: str | None, settings: Any, expected: Any
) -> None:
    model, tokenizer = save_classifier(tmp_path, labels, problem)
    result = ClassifierScorer(tmp_path, device="cpu", batch=3, **settings)(TEXTS)
    assert result == pytest.approx(expected(logits_of(model, tokenizer)).tolist(), abs=1e-5)
    assert all(0 <= score <= 1 for score in result)


def test_long_texts_are_cut_and_none_are_nothing(binary: Path) -> None:
    score = ClassifierScorer(binary, device="cpu")
    long = " ".join(["fool"] * 100)
    assert score([long, "no"]) == pytest.approx([score([long + " thank you"])[0], score(["no"])[0]], abs=1e-6)
    assert score([]) == []


def test_a_decoder_without_a_pad_token(tmp_path: Path) -> None:
    model, tokenizer = save_classifier(tmp_path, ["calm", "toxic"], kind="Llama", pad_token_id=None)
    expected = logits_of(model, tokenizer).softmax(-1)[:, 1].tolist()
    score = ClassifierScorer(tmp_path, device="cpu")
    assert score(TEXTS) == pytest.approx(expected, abs=1e-5)
    score.tokenizer.pad_token, score.model.config.pad_token_id, score.batch = None, None, 1
    assert score(TEXTS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "settings", "match"),
    [
        (["calm", "angry"], {}, "which label is meant? It has 0: calm, 1: angry; pass label="),
        (["toxic", "toxicity"], {}, "which label is meant? It has 0: toxic, 1: toxicity; pass label="),
        (["LABEL_0", "LABEL_1", "LABEL_2"], {}, "which label is meant?"),
        (["non-toxic", "toxic"], {"label": "rude"}, "has no label 'rude'; it has 0: non-toxic, 1: toxic"),
        (["non-toxic", "toxic"], {"label": 2}, "has no label 2; it has"),
        (["toxic"], {"function": "softmax"}, "has one label, of which softmax is always 1: use function='sigmoid'"),
        (["toxic"], {"function": "tanh"}, "function 'tanh': expected one of sigmoid, softmax, clamp"),
        (["toxic"], {"batch": 0}, "batch 0: expected 1 or more"),
    ],
)
def test_no_telling_what_is_meant(tmp_path: Path, labels: list[str], settings: Any, match: str) -> None:
    save_classifier(tmp_path, labels)
    with pytest.raises(DSASError) as caught:
        ClassifierScorer(tmp_path, **settings)
    assert match in str(caught.value)


def test_what_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(DSASError, match=r"no text classifier \./nowhere: no such folder, and no Hub name"):
        ClassifierScorer("./nowhere")
    with pytest.raises(DSASError, match=r"is no text classifier: it has no config\.json"):
        ClassifierScorer(tmp_path)
    build_tokenizer(tmp_path)
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(DSASError, match=r"is no text classifier: it lacks score\.weight, which would be random"):
        ClassifierScorer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(DSASError, match="cannot load"):
        ClassifierScorer(tmp_path)


def test_scores_that_are_no_numbers(binary: Path) -> None:
    score = ClassifierScorer(binary, device="cpu")
    score.model.classifier.bias.data.fill_(float("nan"))
    with pytest.raises(DSASError, match="gives scores that are not finite"):
        score(TEXTS)
    with pytest.raises(DSASError, match="texts: expected a list of texts, found 'one'"):
        score("one")
