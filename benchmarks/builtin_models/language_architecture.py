"""The architecture of `builtin:chat`: a word-level tokenizer with a chat template, and a small Llama."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .conversations import UNKNOWN, vocabulary

PAD, BOS, EOS, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('roles are user and assistant, found ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

#: spelling -> words of the vocabulary
SPELLINGS = {
    "’": "'",
    "won't": "will not",
    "can't": "cannot",
    "can not": "cannot",
    "n't": " not",
    "'m ": " am ",
    "'re ": " are ",
    "'ve ": " have ",
    "'ll ": " will ",
    "it's ": "it is ",
    "that's ": "that is ",
    "what's ": "what is ",
    "where's ": "where is ",
}


@dataclass(frozen=True)
class Preset:
    """Sizes and number of training steps. `cpu` is the model that ships; `tiny` is for tests."""

    layers: int
    width: int
    heads: int
    hidden: int
    positions: int
    row: int  # tokens in a row of packed conversations
    batch: int  # rows per step
    steps: int
    learning_rate: float


PRESETS = {
    "cpu": Preset(
        layers=6,
        width=160,
        heads=4,
        hidden=384,
        positions=256,
        row=128,
        batch=24,
        steps=2000,
        learning_rate=4e-3,
    ),
    "tiny": Preset(
        layers=2, width=32, heads=2, hidden=64, positions=256, row=128, batch=4, steps=6, learning_rate=4e-3
    ),
}


def build_tokenizer(folder: Path):
    """Write a tokenizer in which every word of the corpus is one token into `folder`, and load it.

    Text is lower-cased; a word that is not in the vocabulary becomes `<unk>`, so no input fails.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AutoTokenizer

    ids = {token: i for i, token in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *(normalizers.Replace(old, new) for old, new in SPELLINGS.items())]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)  # no space before a full stop
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # a name that transformers 4 and 5 both know
        "model_max_length": PRESETS["cpu"].positions,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "additional_special_tokens": [USER, ASSISTANT],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return AutoTokenizer.from_pretrained(folder)


def build_model(preset: Preset, tokenizer):
    """An untrained LlamaForCausalLM with tied embeddings; weights from torch's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.width,
        intermediate_size=preset.hidden,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        max_position_embeddings=preset.positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.max_new_tokens = 60
    return model
