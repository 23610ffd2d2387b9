"""Tiny random language models of many families, from configs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

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
#: the families of the identities; the others differ from these in names only
DIFFERENT = ("llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "t5", "llava")


@cache
def tiny(family: str) -> Any:
    """A random model of a family, one for all tests: nothing may change it."""
    torch.manual_seed(0)
    return _BUILD[family]().eval().requires_grad_(False)


class Words:
    """A tokenizer of words; its template puts the role before each turn and an end behind it."""

    chat_template: str | None = "yes"
    pad_token_id: int | None = 0
    eos_token_id: int | None = 1

    def __init__(self) -> None:
        self.words = ["<pad>", "<end>"]

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return type("Ids", (), {"input_ids": [self.words.index(word) for word in text.split()]})

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        said = " ".join(f"<{turn['role']}> {turn['content']} <end>" for turn in conversation)
        return f"{said} <assistant>" if add_generation_prompt else said

    def decode(self, numbers: list[int]) -> str:
        return " ".join(self.words[number] for number in numbers)
