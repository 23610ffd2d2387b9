"""How pipelines wrap a prompt for a text encoder, by the name of the family that does.

Decoder language models read a prompt behind an instruction. The instruction's tokens come first, so causal attention
lets nothing of the prompt into their hidden states: they are neither read nor steered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: the pipeline, the arguments of its `encode_prompt`, a prompt, whether it is a negative one -> the text to tokenise
PromptTemplate = Callable[[Any, Mapping[str, Any], str, bool], str]


def plain(pipe: Any, arguments: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """The prompt alone.

    Example:
        >>> plain(None, {}, "a banana", False)
        'a banana'
    """
    return prompt


def z_image(pipe: Any, arguments: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """A user's message in the tokenizer's chat template, with thinking."""
    return _chat(pipe, prompt, enable_thinking=True)


def flux2_klein(pipe: Any, arguments: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """A user's message in the tokenizer's chat template, without thinking."""
    return _chat(pipe, prompt, enable_thinking=False)


def qwen_image(pipe: Any, arguments: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """In the pipeline's own template."""
    return str(pipe.prompt_template_encode.format(prompt))


def lumina2(pipe: Any, arguments: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """Behind the pipeline's system prompt; negative prompts have none."""
    return prompt if negative else f"{arguments.get('system_prompt') or pipe.system_prompt} <Prompt Start> {prompt}"


def sana(pipe: Any, arguments: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """Behind the instruction that the pipeline is called with, if any; negative prompts have none."""
    return prompt if negative else "\n".join(arguments.get("complex_human_instruction") or ()) + prompt


def flux2(pipe: Any, arguments: Mapping[str, Any], prompt: str, negative: bool) -> str:
    """A system and a user's message, each as a list of parts."""
    turns = (("system", pipe.system_message), ("user", prompt.replace("[IMG]", "")))
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    return str(pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False))


def _chat(pipe: Any, prompt: str, **options: Any) -> str:
    messages = [{"role": "user", "content": prompt}]
    return str(pipe.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
