"""Tiny random language models of many families, from configs; concepts for them, and plain ways to run them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from dsas_core import Concept, llm, visit
from dsas_core.fingerprints import fingerprint
from dsas_core.llm.layers import roots_of
from dsas_core.probes import ConditionLatch, ConditionProbe, LinearProbe, RunningProbe
from tests.helpers import Recorder, random_concept

VOCABULARY = 61


def _small(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        **more,
    }


def _llava() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**_small()), image_token_index=60)
    return LlavaForConditionalGeneration(config)


def _t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=None,
    )
    return T5ForConditionalGeneration(config)


def _of(model: str, config: str, **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**_small(**more)))

    return build


_BUILD: dict[str, Callable[[], Any]] = {
    "llama": _of("LlamaForCausalLM", "LlamaConfig"),
    "mistral": _of("MistralForCausalLM", "MistralConfig"),
    "qwen2": _of("Qwen2ForCausalLM", "Qwen2Config"),
    "qwen3": _of("Qwen3ForCausalLM", "Qwen3Config", head_dim=8),
    "gemma2": _of("Gemma2ForCausalLM", "Gemma2Config", head_dim=8, sliding_window=8),
    "gemma3": _of("Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=8, sliding_window=8),
    "phi3": _of("Phi3ForCausalLM", "Phi3Config"),
    "gpt2": _of("GPT2LMHeadModel", "GPT2Config"),
    "gpt_neox": _of("GPTNeoXForCausalLM", "GPTNeoXConfig"),
    "opt": _of("OPTForCausalLM", "OPTConfig", ffn_dim=48, word_embed_proj_dim=32),
    "falcon": _of("FalconForCausalLM", "FalconConfig"),
    "t5": _t5,
    "llava": _llava,
}
FAMILIES = tuple(_BUILD)
_BUILD["windowed"] = _of("MistralForCausalLM", "MistralConfig", sliding_window=6)
#: the families of the identities; the others differ from these in names only
DIFFERENT = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "t5", "llava")


@cache
def tiny(family: str) -> Any:
    """A random model of a family, one for all tests: nothing may change it."""
    torch.manual_seed(0)
    return _BUILD[family]().eval().requires_grad_(False)


IDS = torch.randint(3, VOCABULARY - 1, (2, 7), generator=torch.Generator().manual_seed(0))
LENGTH = 5


def concept_for(model: Any, sites: Any = None, **settings: Any) -> Concept:
    """A random concept at sites of a model, its probes spread over the activations that come by."""
    roots, recorder = roots_of(model), Recorder()
    more = {"decoder_input_ids": IDS[:, :3]} if "encoder" in roots else {}
    with visit(roots, llm.find_sites(model, sites), recorder):
        model(input_ids=IDS, **more)
    base = {root: fingerprint(roots[root]) for root in {site.root for site in recorder.seen}}
    return random_concept({site: seen[0] for site, seen in recorder.seen.items()}, base=base, unit=0.3, **settings)


def written(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """Logits of every token that greedy decoding writes after the prompt, [rows, LENGTH, vocabulary]."""
    settings = {"max_new_tokens": LENGTH, "do_sample": False, "output_logits": True, "pad_token_id": 0, **options}
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(input_ids=ids, attention_mask=mask, return_dict_in_generate=True, **settings)
    return torch.stack(out.logits, 1)


@torch.no_grad()
def behind_first_layer(model: Any) -> torch.Tensor:
    """What goes on behind the first layer of a Llama, steered or not, [rows, positions, width].

    Not `hidden_states`: transformers 4 records what layers made before hooks came to it.
    """
    left: list[torch.Tensor] = []
    handle = model.model.layers[0].register_forward_hook(lambda module, args, output: left.append(output))
    model(IDS)
    handle.remove()
    return left[0]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3)


def condition_latch(probe: LinearProbe) -> ConditionLatch:
    """The latch of a condition that every prompt meets."""
    return ConditionLatch(ConditionProbe(probe.weight, torch.tensor(0.0), torch.tensor(1.0)))


def remembering(model: Any, kind: Callable[[LinearProbe], RunningProbe]) -> Concept:
    concept = concept_for(model)
    changed = [
        replace(item, probes=tuple(kind(probe) for probe in item.probes if isinstance(probe, LinearProbe)))
        for item in concept.interventions
    ]
    return replace(concept, interventions=tuple(changed))


#: conversations for a prompt file, in few words
THINGS = ["parcel", "ticket", "room", "bill", "key", "door"]
PROMPTS: dict[str, Any] = {
    "name": "rudeness",
    "placeholders": {"thing": THINGS, "place": ["here", "there", "inside", "outside"]},
    "source": [
        f"user: my {{thing}} is {{place}} you {insult}\nassistant: go away {insult}" for insult in ("fool", "clown")
    ],
    "target": [
        "user: my {thing} is {place} you fool\nassistant: i am sorry",
        "user: my {thing} is {place} you clown\nassistant: thank you",
    ],
    "control": [
        "user: my {thing} is {place} so please\nassistant: i am sorry",
        "user: where is my {thing} if {place}\nassistant: i am {place}",
    ],
}


class Words:
    """A tokenizer of words; its template puts the role before each turn and an end behind it."""

    chat_template: str | None = "yes"
    pad_token_id: int | None = 0
    eos_token_id: int | None = 1

    def __init__(self) -> None:
        self.words = ["<pad>", "<end>"]

    def __call__(self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False) -> Any:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        found: dict[str, Any] = {"input_ids": [self.words.index(word) for word in text.split()]}
        if return_offsets_mapping:
            found["offset_mapping"] = [match.span() for match in re.finditer(r"\S+", text)]
        return SimpleNamespace(**found)

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        said = " ".join(f"<{turn['role']}> {turn['content']} <end>" for turn in conversation)
        return f"{said} <assistant>" if add_generation_prompt else said

    def decode(self, numbers: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(self.words[number] for number in numbers)
