"""A concept is of a model's architecture, whatever tuner of PEFT is around its modules: every installed kind."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsas_core import Concept, DSASError, Site, llm
from dsas_core.llm.model.layers import roots_of
from dsas_core.model.fingerprints import describe_module, fingerprint, has_other_weights, weights_digest
from dsas_core.model.sites import modules
from dsas_diffusion import find_sites, steer
from dsas_diffusion.pipelines.adapter import adapt
from tests.fixtures.concepts import random_concept
from tests.fixtures.language_models import IDS, concept_for, tiny
from tests.fixtures.models import bases, build_ddim_pipe, latents
from tests.fixtures.visitors import Bare

peft = pytest.importorskip("peft")

#: what each kind needs beside its defaults; sizes that fit a tiny model
SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1, "target_modules": "self_attn"},
    "BOFT": {"boft_block_size": 4},
    "BONE": {"r": 2},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 10},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 2},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
    "PSOFT": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0},
    "ROAD": {"group_size": 8},
    "SHADOW": {"target_modules": None},
    "SHIRA": {"r": 1},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 2]},
    "VBLORA": {"num_vectors": 8, "vector_length": 8, "r": 2, "topk": 1},
    "WAVEFT": {"n_frequency": 16},
}
ALL = sorted(str(getattr(kind, "value", kind)) for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)

#: those that differ in what they are around, and how they call it; the others are slow
DIFFERENT = ("ADALORA", "ADAPTION_PROMPT", "IA3", "LN_TUNING", "LOHA", "OFT", "POLY", "PROMPT_TUNING", "SHADOW")
KINDS = [pytest.param(kind, marks=[] if kind in DIFFERENT else pytest.mark.slow) for kind in ALL]
#: those that go around modules one by one, of whatever model
OF_TEXTS = ("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LN_TUNING", "POLY", "SHADOW", "TRAINABLE_TOKENS", "XLORA")
PICTURE_KINDS = [
    pytest.param(kind, how, marks=[] if (kind, how) in (("LOHA", "around"), ("OFT", "inside")) else pytest.mark.slow)
    for kind in ALL
    if kind not in OF_TEXTS and "PROMPT" not in kind and kind not in ("PREFIX_TUNING", "P_TUNING")
    for how in ("around", "inside")
]


def config_of(kind: str, targets: list[str], **more: Any) -> Any:
    """Settings of a kind of tuner, its weights drawn at random where it can."""
    made = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    fields = made.__dataclass_fields__
    known = {"target_modules": targets, "num_virtual_tokens": 3, **SETTINGS.get(kind, {}), **more}
    return made(**{name: value for name, value in known.items() if name in fields})


def shaken(model: nn.Module) -> nn.Module:
    """The model with what can be trained moved a little: most adapters begin as nothing."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def tuned(kind: str, tmp_path: Path, **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny Llama with a tuner, and what its call takes more."""
    model = copy.deepcopy(tiny("llama"))
    if kind == "XLORA":
        folder = tmp_path / "one"
        peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
        model.config.use_cache = False
        config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters={"0": str(folder)})
        return shaken(peft.get_peft_model(model, config)), {"attention_mask": torch.ones_like(IDS)}
    model = peft.get_peft_model(model, config_of(kind, ["q_proj", "down_proj"], task_type="CAUSAL_LM", **more))
    takes_tasks = kind in ("POLY", "MULTITASK_PROMPT_TUNING")
    return shaken(model), {"task_ids": torch.zeros(len(IDS), dtype=torch.long)} if takes_tasks else {}


@torch.no_grad()
def logits(model: nn.Module, **more: Any) -> torch.Tensor:
    return model(input_ids=IDS, **more).logits


@cache
def learned() -> Concept:
    """A concept of the bare model, at its layers, in their parts, and at heads."""
    return concept_for(tiny("llama"), ["block", "attention", "mlp", "heads", "mlp.down_proj", "self_attn.q_proj"])


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="peft|transformers|torch")
        warnings.filterwarnings("ignore", message=".*Position ids|.*is_gradient_checkpointing")
        yield


def check(model: nn.Module, concept: Concept, **more: Any) -> None:
    """What must hold of a concept on a tuned model."""
    bare, known = tiny("llama"), describe_module(tiny("llama"))
    assert fingerprint(model) == fingerprint(bare)
    assert describe_module(model)["parameters"] == known["parameters"]
    assert list(modules(roots_of(model))) == list(modules(roots_of(bare)))
    assert llm.find_sites(model, "heads") == llm.find_sites(bare, "heads")
    before, hooks = logits(model, **more), Bare.of(model)
    if not torch.equal(logits(model, **more), before):
        for _ in range(9):  # CPT scales its tokens in each call, until they stay
            before = logits(model, **more)
    with quiet(), llm.steer(model, {concept: 0.0}) as steering:
        assert torch.equal(logits(model, **more), before)
        steering.strengths[concept.name] = 1.0
        moved = logits(model, **more)
        assert moved.isfinite().all()
        assert not torch.allclose(moved, before, atol=1e-3)
        assert steering.fired == sorted(map(str, concept.sites))
    assert torch.equal(logits(model, **more), before)
    assert Bare.of(model) == hooks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_tuner_leaves_a_model_the_same_to_a_concept(kind: str, tmp_path: Path) -> None:
    model, more = tuned(kind, tmp_path)
    check(model, learned(), **more)
    assert not has_other_weights(model, describe_module(tiny("llama")))


def wrapped_in(kind: str, model: nn.Module) -> nn.Module:
    """A model with adapters that came in another way, or are in another state."""
    config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    if kind == "injected":
        return peft.inject_adapter_in_model(config, model).eval()
    if kind == "added by transformers":
        model.add_adapter(config)
        return model.eval()
    if kind == "copies of modules":
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["mlp", "lm_head", "o_proj"])
    if kind == "tokens":
        config = peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2])
    if kind == "DoRA":
        config = peft.LoraConfig(target_modules=["q_proj", "down_proj"], use_dora=True)
    if kind == "embeddings and head":
        config = peft.LoraConfig(target_modules=["embed_tokens", "lm_head", "o_proj"], init_lora_weights=False)
    whole = shaken(peft.get_peft_model(model, config, mixed=kind == "mixed"))
    if kind in ("several", "mixed"):
        other = peft.LoHaConfig(target_modules=["o_proj", "q_proj"], init_weights=False)
        again = peft.LoraConfig(target_modules=["v_proj", "q_proj"], init_lora_weights=False)
        whole.add_adapter("other", other if kind == "mixed" else again)
        whole.set_adapter(["default", "other"] if kind == "mixed" else "other")
    if kind == "in another":
        whole = shaken(peft.get_peft_model(whole, peft.LoraConfig(target_modules=["v_proj"])))
    if kind == "disabled":
        whole.base_model.disable_adapter_layers()
    if kind == "merged":
        whole.merge_adapter()
    if kind == "unloaded":
        return whole.unload()
    return whole.eval()


STATES = ["injected", "added by transformers", "copies of modules", "tokens", "DoRA", "embeddings and head", "several"]
STATES += ["mixed", "in another", "disabled", "merged", "unloaded"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STATES)
def test_however_adapters_came_and_whatever_they_do(kind: str) -> None:
    model = wrapped_in(kind, copy.deepcopy(tiny("llama")))
    check(model, learned())
    assert has_other_weights(model, describe_module(tiny("llama"))) == (kind == "merged"), "merged, they are other"


def test_digests_tell_adapters_of_every_kind_from_disabled_ones() -> None:
    model = shaken(
        peft.get_peft_model(
            copy.deepcopy(tiny("llama")), config_of("IA3", ["q_proj", "down_proj"], task_type="CAUSAL_LM")
        )
    )
    digest = weights_digest(roots_of(model))
    with model.disable_adapter():
        assert weights_digest(roots_of(model)) != digest
    assert weights_digest(roots_of(model)) == digest
    prompts = shaken(
        peft.get_peft_model(copy.deepcopy(tiny("llama")), config_of("PROMPT_TUNING", [], task_type="CAUSAL_LM"))
    )
    digest = weights_digest(roots_of(prompts))
    assert weights_digest(roots_of(shaken(prompts.requires_grad_()))) != digest, "virtual tokens count"


def test_a_truly_other_model_is_refused_whatever_is_around_it() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = tiny("llama").config.to_dict() | {"intermediate_size": 64}
    other = LlamaForCausalLM(LlamaConfig(**config))
    wrapped = peft.get_peft_model(other, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(DSASError, match="another model than this") as error:
        llm.steer(wrapped, {learned(): 1.0})
    assert "mlp.down_proj was 32 wide" not in str(error.value)
    named = nn.Sequential(nn.Linear(4, 4))
    named.lora_head = nn.Linear(4, 4)
    assert fingerprint(named) != fingerprint(nn.Sequential(nn.Linear(4, 4))), "a name alone makes no adapter"


@pytest.mark.parametrize("disabled", [False, True])
def test_adapters_that_change_a_model_behind_its_hooks(disabled: bool) -> None:
    """AdaLoRA, adaption prompts and disabled virtual tokens call the `forward` of what they wrap, past its hooks."""
    kind = "PROMPT_TUNING" if disabled else "ADALORA"
    model = shaken(
        peft.get_peft_model(copy.deepcopy(tiny("llama")), config_of(kind, ["q_proj"], task_type="CAUSAL_LM"))
    )
    with llm.steer(model, {learned(): 1.0}, trace=True) as steering:
        for _ in range(2):
            with model.disable_adapter():
                moved = logits(model)
        assert steering.trace is not None
        assert {len(record.h) for record in steering.trace.records} == {2}
    with llm.steer(tiny("llama"), {learned(): 1.0}):
        assert torch.allclose(logits(tiny("llama")), moved, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_adapters_that_come_later_are_told_of_where_they_are_around_a_site() -> None:
    model = copy.deepcopy(tiny("llama"))
    with llm.steer(model, {learned(): 1.0}):
        logits(model)
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["down_proj"], init_lora_weights=False), model)
        with pytest.warns(
            UserWarning, match=r"other modules have come to model\.model\.layers\.\d\.mlp\.down_proj.*anew"
        ):
            logits(model)
    with quiet(), llm.steer(model, {learned(): 1.0}) as steering:
        logits(model)
        assert len(steering.fired) == len(learned().sites)


# ---- pictures -------------------------------------------------------------------------------------------------------


@cache
def pipe() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return build_ddim_pipe(Path(folder), shallow=True)


@cache
def learned_on_pictures() -> Concept:
    sites = find_sites(pipe(), ["cross", "text", r"unet\.conv_in", r"unet\..*attn1\.to_q"])
    widths = {site: 32 if site.root == "text_encoder" else 16 for site in sites}
    return random_concept(widths, base=bases(pipe()))


def draw(whole: Any) -> torch.Tensor:
    return latents(whole, "a banana", num_inference_steps=2)


def check_pipe(whole: Any, concept: Concept) -> None:
    before, hooks = draw(whole), [Bare.of(root) for root in adapt(whole).roots.values()]
    with quiet(), steer(whole, {concept: 0.0}) as steering:
        assert torch.equal(draw(whole), before)
        steering.strengths[concept.name] = 1.0
        assert not torch.allclose(draw(whole), before, atol=1e-3)
        assert steering.fired == sorted(map(str, concept.sites))
    assert torch.equal(draw(whole), before)
    assert [Bare.of(root) for root in adapt(whole).roots.values()] == hooks


def put(config: Any, root: nn.Module, how: str) -> nn.Module:
    if how == "around":
        return peft.get_peft_model(root, config)
    try:
        return peft.inject_adapter_in_model(config, root)
    except ValueError as error:
        if "shared state" not in str(error):
            raise
        pytest.skip("PEFT puts it around a model only")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "how"), PICTURE_KINDS)
def test_every_tuner_of_linear_layers_on_a_unet_and_a_text_encoder(kind: str, how: str) -> None:
    whole = copy.deepcopy(pipe())
    for name, targets in (("unet", ["to_q", "to_out.0"]), ("text_encoder", ["q_proj", "fc2"])):
        config = config_of(kind, targets, **({"feedforward_modules": []} if kind == "IA3" else {}))
        setattr(whole, name, shaken(put(config, getattr(whole, name), how)))
    assert find_sites(whole, r"unet\.conv_in") == find_sites(pipe(), r"unet\.conv_in")
    check_pipe(whole, learned_on_pictures())


@pytest.mark.filterwarnings("ignore")
def test_an_adapted_convolution_keeps_its_layout() -> None:
    whole = copy.deepcopy(pipe())
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["conv_in"], init_lora_weights=False), whole.unet)
    assert find_sites(whole, r"unet\.conv_in") == [Site("unet.conv_in", layout="first")]
    check_pipe(whole, learned_on_pictures())
