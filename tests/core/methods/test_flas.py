"""FLAS: folders as released, concepts of texts, training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from dsas_core import Concept, DSASError, llm
from dsas_core.errors import ArtifactError, ModelMismatchError, PromptError, UnsupportedError
from dsas_core.llm.flas.examples import load_examples
from dsas_core.llm.flas.folder import CONFIG, TENSORS
from dsas_core.llm.flas.frame import encode, read_frame
from dsas_core.llm.flas.network import Network
from dsas_core.llm.flas.start import start
from dsas_core.llm.steering.answer import answer, encode_message
from dsas_core.maps.flow import FlowMap
from dsas_core.probes import LinearProbe
from tests.fixtures.checks import differ
from tests.fixtures.language_models import IDS, tiny, written

EXAMPLES = {
    "be kind": [("hello", "thank you for your message."), ("who are you?", "i am sorry.")],
    "be brief": [("hello", "no."), ("who are you?", "the help desk.")],
}


@pytest.fixture(scope="module")
def chat() -> tuple[Any, Any]:
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    return model, tokenizer


class Words:
    """A tokenizer that numbers letters."""

    def __call__(self, text: str, return_tensors: str = "pt", **_: Any) -> Any:
        ids = torch.tensor([[1, *(3 + ord(letter) % 50 for letter in text)]])
        return type("Ids", (), {"input_ids": ids})


def random_network(model: Any, seed: int = 0, **settings: Any) -> Network:
    """A network as large as one that was trained."""
    network = start(model, layer=0, name="tiny", **settings)
    random = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=random) for name, tensor in network.weights.items()
    }
    return Network(weights, 0, "tiny")


def write(folder: Path, network: Network, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in network.weights.items()}
    save_file(tensors, folder / "flas-tiny.safetensors")
    told = {"model_id": "tiny", "layer": network.layer, "num_blocks": network.blocks, "lr": 5e-5, **config}
    (folder / CONFIG).write_text(json.dumps(told))
    return folder


# ---- what released weights mean -------------------------------------------------------------------------------------


def reference(model: Any, weights: dict[str, torch.Tensor], h: torch.Tensor, concept: torch.Tensor, time: float) -> Any:
    """The velocity, from the modules of transformers that released weights are of."""
    config, layer = model.config, model.model.layers[0]
    kind, positions = type(layer.input_layernorm), torch.arange(h.shape[1])[None]

    def get(name: str) -> torch.Tensor:
        return weights[f"blocks.0.{name}"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        made = kind(x.shape[-1], eps=config.rms_norm_eps)
        made.weight = nn.Parameter(get(f"{name}.weight"))
        return made(x)

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, layer.self_attn.head_dim))

    def turn(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        cos, sin = (part[:, None] for part in model.model.rotary_emb(x, numbers))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    begin = h
    half = weights["time_embed.mlp.0.weight"].shape[1] // 2
    angles = time * torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(half) / half)
    waves = torch.cat([angles.sin(), angles.cos()])
    hidden = functional.silu(functional.linear(waves, *(weights[f"time_embed.mlp.0.{x}"] for x in ("weight", "bias"))))
    h = h + functional.linear(hidden, *(weights[f"time_embed.mlp.2.{x}"] for x in ("weight", "bias")))

    q = turn(
        norm("cross_attn.q_norm", heads(norm("pre_cross_norm", h) @ get("cross_attn.q_proj.weight").T)).transpose(1, 2),
        positions,
    )
    k = norm("cross_attn.k_norm", heads(concept @ get("cross_attn.k_proj.weight").T)).transpose(1, 2)
    k = turn(k, torch.arange(concept.shape[1])[None])
    v = heads(concept @ get("cross_attn.v_proj.weight").T).transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    products = q @ k.repeat_interleave(groups, 1).transpose(2, 3) * q.shape[-1] ** -0.5
    if (cap := getattr(config, "attn_logit_softcapping", None)) is not None:
        products = cap * torch.tanh(products / cap)
    read = (products.softmax(-1) @ v.repeat_interleave(groups, 1)).transpose(1, 2).flatten(2)
    h = h + get("cross_gate") * norm("post_cross_norm", read @ get("cross_attn.o_proj.weight").T)

    attention = copy.deepcopy(layer.self_attn)
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation = "eager"
    attention.load_state_dict({n: get(f"self_attn.{n}") for n in attention.state_dict()})
    mask = torch.full((h.shape[1], h.shape[1]), -1e4).triu(1)[None, None]
    around = model.model.rotary_emb(h, positions)
    read = attention(norm("pre_sa_norm", h), position_embeddings=around, attention_mask=mask)[0]
    h = h + get("self_attn_gate") * norm("post_sa_norm", read)

    x = norm("pre_mlp_norm", h)
    x = (layer.mlp.act_fn(x @ get("gate_proj.weight").T) * (x @ get("up_proj.weight").T)) @ get("down_proj.weight").T
    return h + get("mlp_gate") * norm("post_mlp_norm", x) - begin


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "mistral"])
def test_a_released_folder_moves_hidden_states_as_its_equations_say(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    network = llm.flas.load(write(tmp_path / "it", random_network(model)))
    concept = network.concept(model, Words(), "pirate")
    flow = concept.interventions[0].maps[0]
    assert isinstance(flow, FlowMap)
    tokens = encode(model, Words(), ["pirate"])[0]
    weights = {name: tensor.float() for name, tensor in network.weights.items()}
    x = torch.randn(1, 5, model.config.hidden_size)
    with torch.no_grad():
        h = x
        for step in range(3):
            h = h + 1.4 / 3 * reference(model, weights, h, tokens[None], step * 1.4 / 3)
        torch.testing.assert_close(flow.apply(x, 0.7), h, atol=2e-4, rtol=1e-3)
    assert differ(h, x)


def test_the_text_is_encoded_by_the_first_layers_and_the_last_norm() -> None:
    model = tiny("deep")
    ids = Words()("pirate").input_ids
    short = copy.deepcopy(model)
    short.model.layers = short.model.layers[:2]
    torch.testing.assert_close(encode(model, Words(), ["pirate"])[0], short.model(ids, use_cache=False)[0][0])


# ---- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_and_written(tmp_path: Path) -> None:
    model = tiny("llama")
    network = llm.flas.load(write(tmp_path / "it", random_network(model, blocks=2), dataset="c16k"))
    assert (network.blocks, network.layer, network.model) == (2, 0, "tiny")
    again = llm.flas.load(llm.flas.save(network, tmp_path / "copy"))
    assert again.settings["dataset"] == "c16k"
    assert all(torch.equal(again.weights[name], tensor.float()) for name, tensor in network.weights.items())
    with pytest.raises(ArtifactError, match="already"):
        llm.flas.save(network, tmp_path / "copy")
    llm.flas.save(network, tmp_path / "copy", overwrite=True)


def test_parts_may_be_missing(tmp_path: Path) -> None:
    model = tiny("llama")
    folder = write(tmp_path / "it", random_network(model), disable_self_attn=True)
    network = llm.flas.load(folder)
    assert not any("self_attn" in name for name in network.weights), "what is left of it is dropped"
    flow = network.concept(model, Words(), "pirate").interventions[0].maps[0]
    assert isinstance(flow, FlowMap)
    assert flow.blocks[0].causal is None
    x = torch.randn(1, 4, 32)
    torch.testing.assert_close(flow.apply(x, 0.5)[:, 1:2], flow.apply(x.flip(1), 0.5).flip(1)[:, 1:2], atol=1, rtol=1)
    assert llm.flas.load(llm.flas.save(network, tmp_path / "copy")).without == ("self_attn",)


def damage(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "flas-tiny.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.0.cross_gate": None}, "lacks blocks.0.cross_gate"),
        ({"blocks.0.cross_gate": torch.ones(31)}, r"cross_gate of a FLAS network has shape \[31\], expected \[width\]"),
        ({"blocks.0.mlp_gate": torch.full((32,), torch.nan)}, "not finite"),
        ({"head.weight": torch.ones(2)}, "has no head.weight"),
        ({"blocks.0.mlp_gate": torch.ones(32, dtype=torch.int32)}, "no tensor of floats"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(changes: Any, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "it", random_network(tiny("llama")))
    damage(folder, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        llm.flas.load(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_of_a_network_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "it", random_network(tiny("llama")))
    with pytest.raises(ArtifactError, match="it has no config"):
        llm.flas.load(tmp_path)
    (folder / CONFIG).write_text('{"num_blocks": 2}')
    with pytest.raises(ArtifactError, match="num_blocks 2"):
        llm.flas.load(folder)
    (folder / CONFIG).write_text('{"layer": "20"}')
    with pytest.raises(ArtifactError, match="layer must be a whole number"):
        llm.flas.load(folder)
    (folder / CONFIG).write_text("{}")
    (folder / "flas-tiny.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="is damaged"):
        llm.flas.load(folder)
    (folder / "flas-tiny.safetensors").rename(folder / "final.pt")
    with pytest.raises(ArtifactError, match="may run code"):
        llm.flas.load(folder)


def test_a_network_of_another_width_is_refused_in_one_line(chat: tuple[Any, Any]) -> None:
    with pytest.raises(ModelMismatchError, match="with width 32, and this model has width 160"):
        random_network(tiny("llama")).concept(*chat, "be kind")
    model, tokenizer = chat
    deep = Network(start(model, layer=3).weights, 20, "gemma")
    with pytest.raises(ModelMismatchError, match="of layer 20, and this model has layers 0 to 5"):
        deep.concept(model, tokenizer, "be kind")


@pytest.mark.parametrize("family", ["gpt2", "t5", "gpt_neox"])
def test_models_of_another_kind_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedError, match="choose"):
        read_frame(tiny(family), 0)


# ---- concepts -------------------------------------------------------------------------------------------------------


def test_a_concept_is_one_like_any_other(chat: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = chat
    network = start(model, layer=3)
    probe = LinearProbe(torch.randn(160), torch.tensor(0.0))
    concept = network.concept(model, tokenizer, "be kind", name="kind", gate=probe, gating="time")
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "kind"))
    assert loaded == concept
    inputs = encode_message(tokenizer, "where is my parcel?")
    base = answer(model, tokenizer, inputs, 8)
    with llm.steer(model, {loaded: 1.0}) as steering:
        answer(model, tokenizer, inputs, 8)
        steering.strengths["kind"] = 0.0
        assert answer(model, tokenizer, inputs, 8) == base
        with pytest.raises(DSASError, match="is steered"):
            network.concept(model, tokenizer, "be kind")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": " "}, "is empty"),
        ({"text": "be kind " * 40}, "trained on up to 64"),
        ({"gate": "dsas"}, "expected on, off, or a probe"),
        ({"gating": "space"}, "expected interpolate or time"),
        ({"steps": 0}, "expected a whole number"),
    ],
)
def test_what_a_concept_cannot_be_made_of(given: dict[str, Any], message: str, chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    with pytest.raises(DSASError, match=message):
        start(model, layer=3).concept(model, tokenizer, **{"text": "be kind", **given})


# ---- training -------------------------------------------------------------------------------------------------------


def state_of(model: Any) -> Any:
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    asking = [parameter.requires_grad for parameter in model.parameters()]
    return [part.training for part in model.modules()], asking, hooks, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_training_leaves_the_model_as_it_was(
    fails: bool, chat: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = copy.deepcopy(chat[0]), chat[1]
    model.train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    before, weights = state_of(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if fails:
        monkeypatch.setattr(model.model.layers[5].mlp, "forward", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llm.flas.train(model, tokenizer, EXAMPLES, layer=3, steps=2, batch=2, show_progress=False)
    else:
        llm.flas.train(model, tokenizer, EXAMPLES, layer=3, steps=2, batch=2, show_progress=False)
    assert state_of(model) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_trained_network_writes_what_its_concepts_ask_for(chat: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = chat
    settings: dict[str, Any] = {"layer": 3, "batch": 4, "rate": 3e-3, "show_progress": False}
    first, again = (llm.flas.train(model, tokenizer, EXAMPLES, steps=3, **settings).weights for _ in range(2))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items()), "the seed tells all"
    network = llm.flas.train(model, tokenizer, EXAMPLES, steps=160, **settings)
    losses = network.settings["losses"]
    assert losses[-1] < 0.2 * losses[0]
    network = llm.flas.load(llm.flas.save(network, tmp_path / "it"))
    written_texts = {}
    for text in EXAMPLES:
        with llm.steer(model, {network.concept(model, tokenizer, text): 1.0}):
            written_texts[text] = answer(model, tokenizer, encode_message(tokenizer, "hello"), 8).text
    assert written_texts == {text: rows[0][1] for text, rows in EXAMPLES.items()}


def test_training_moves_as_steering_does(chat: tuple[Any, Any]) -> None:
    """The loss of an answer is that of the steered model, in a padded batch of several concepts."""
    from dsas_core.llm.flas.training import Settings, _encode_rows, _Trainer

    model, tokenizer = chat
    network = start(model, layer=3)
    weights = {name: tensor + 0.05 * torch.randn(tensor.shape) for name, tensor in network.weights.items()}
    network = Network(weights, 3, "chat")
    examples = load_examples({"be kind, please": [("hello", "hello, dear")], "brief": [("who are you?", "i")]})
    settings = Settings(times=(1.0, 1.0))
    trainer = _Trainer(model, network, network.frame(model), encode(model, tokenizer, list(examples)), settings)
    rows = _encode_rows(model, tokenizer, examples)
    losses = []
    for text, row in zip(examples, rows, strict=True):
        ids = torch.tensor([row.tokens.ids])
        with torch.no_grad(), llm.steer(model, {network.concept(model, tokenizer, text): 0.5}):
            logits = model(ids).logits[0, row.tokens.answer - 1 : -1]
        losses.append(functional.cross_entropy(logits, ids[0, row.tokens.answer :], reduction="none"))
    found, likeness = trainer._loss(rows, 0)
    torch.testing.assert_close(found.detach(), torch.cat(losses).mean(), atol=1e-4, rtol=1e-4)
    assert -1 <= float(likeness.detach()) <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "must map texts"),
        ("be kind: hello", r"expected lists \[prompt, answer\]"),
        ("be kind: [[hello]]", r"expected lists \[prompt, answer\]"),
        ("be kind: [[hello, 3]]", "must be texts"),
        ("be kind: [{prompt: hello, reply: hi}]", "must be texts"),
        ("3: [[hello, hi]]", "not as a text"),
    ],
)
def test_files_of_concepts_that_are_none(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "concepts.yaml"
    path.write_text(content)
    with pytest.raises(PromptError, match=message):
        load_examples(path)


def test_settings_that_are_none(chat: tuple[Any, Any]) -> None:
    for given in ({"stepz": 3}, {"steps": 0}, {"times": (0.0, 2.0)}, {"rate": -1.0}):
        with pytest.raises(DSASError, match=r"expected|has no setting"):
            llm.flas.train(*chat, EXAMPLES, show_progress=False, **given)
    with pytest.raises(PromptError, match=r"tokens, expected up to 256"):
        llm.flas.train(*chat, {"be kind": [("hello " * 300, "hi")]}, show_progress=False)


def test_the_file_is_named_as_the_writer_does(chat: tuple[Any, Any], tmp_path: Path) -> None:
    folder = llm.flas.save(start(chat[0], layer=3), tmp_path / "it")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, TENSORS]
    assert json.loads((folder / CONFIG).read_text())["model_id"] == "builtin:chat"
    assert written(tiny("llama"), IDS) is not None
