"""How pipelines word a prompt for a text encoder: what stands in front of it is the same for all and no part of it.

Decoder language models read a prompt behind an instruction. Nothing that comes later shows in it, so it says nothing
about the prompt: it is neither read nor steered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: the pipeline, what its `encode_prompt` is called with, a prompt, whether it is a negative one -> what is tokenised
PromptTemplate = Callable[[Any, Mapping[str, Any], str, bool], str]


def plain(pipe: Any, given: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """The prompt alone."""
    return prompt


def z_image(pipe: Any, given: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """A user's turn, as Z-Image has it."""
    return _turn(pipe, prompt, enable_thinking=True)


def flux2_klein(pipe: Any, given: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """A user's turn, as FLUX.2 [klein] has it."""
    return _turn(pipe, prompt, enable_thinking=False)


def qwen_image(pipe: Any, given: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """In the template of Qwen-Image."""
    return str(pipe.prompt_template_encode.format(prompt))


def lumina2(pipe: Any, given: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """Behind Lumina's instruction; negative prompts have none."""
    return prompt if negative else f"{given.get('system_prompt') or pipe.system_prompt} <Prompt Start> {prompt}"


def sana(pipe: Any, given: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """Behind Sana's instruction, if any; negative prompts have none."""
    return prompt if negative else "\n".join(given.get("complex_human_instruction") or ()) + prompt


def flux2(pipe: Any, given: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """Behind FLUX.2's instruction, as parts of messages."""
    turns = (("system", pipe.system_message), ("user", prompt.replace("[IMG]", "")))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    return str(pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))


def _turn(pipe: Any, prompt: str, **options: Any) -> str:
    messages = [{"role": "user", "content": prompt}]
    return str(pipe.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
