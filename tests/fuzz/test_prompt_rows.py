"""Random prompts and negative prompts, alike or not, in every family: the prompt's rows are steered, no others are.

What is steered is compared with what is known without telling rows apart: a run without steering, and one in which all
rows are steered.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from hypothesis import event
from hypothesis import strategies as some

from dsas_core import visit
from dsas_diffusion import steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from tests.diffusion.steering.test_identities_by_family import CALLS, concept_of, pipe_of
from tests.fixtures.pipelines import FAMILIES, GUIDED, UNTOLD, latents
from tests.fixtures.visitors import Recorder
from tests.fuzz.campaign import campaign

TOLD = [family for family in FAMILIES if family not in UNTOLD]
WORDS = some.sampled_from(["a", "banana", "dog", "red", "Banana", "on", "table", "grass", "3", "(", "pig,", "cat"])
TEXTS = some.lists(WORDS, max_size=70).map(" ".join)
#: a negative prompt, made of its prompt and of another text
NEGATIVES = {
    "another": lambda prompt, other: other,
    "equal": lambda prompt, other: prompt,
    "of other letters": lambda prompt, other: prompt.swapcase(),
    "equal up to the cut-off": lambda prompt, other: " ".join([prompt] * 40) + " " + other,
    "empty": lambda prompt, other: "",
}
#: of the embeddings that a callback gets, what it hands back
CALLBACKS = {
    "none": None,
    "nothing else": lambda embeds: embeds,
    "copies": lambda embeds: [part.clone() for part in embeds] if isinstance(embeds, list) else embeds.clone(),
    "others": lambda embeds: [part / 2 for part in embeds] if isinstance(embeds, list) else embeds / 2,
}


def draw(family: str, prompts: list[str], options: dict[str, Any]) -> None:
    own = {**options, "negative_prompt": list(options["negative_prompt"])}  # Z-Image writes into what it is given
    latents(pipe_of(family), family, prompts, range(len(prompts) * options["num_images_per_prompt"]), **own)


def calls_of(family: str, prompts: list[str], branch: str | None, options: dict[str, Any]) -> list[Any]:
    """What the denoiser is given of the texts, and what it makes, call by call; steered, if a branch is given."""
    pipe, found = pipe_of(family), []

    def note(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        texts = kwargs.get("encoder_hidden_states", kwargs.get("cap_feats", args[2] if len(args) > 2 else None))
        made = output[0] if isinstance(output, tuple) else output.sample
        found.append(([part.clone() for part in texts], [part.clone() for part in made]))

    def run() -> None:
        handle = getattr(pipe, adapt(pipe).family.denoiser).register_forward_hook(note, with_kwargs=True)
        try:
            draw(family, prompts, options)
        finally:
            handle.remove()

    if branch is None:
        run()
        return found
    concept = concept_of(family, "text")
    denoiser = replace(concept_of(family, adapt(pipe).family.denoiser_default[0]), name="denoiser")
    with warnings.catch_warnings(), steer(pipe, {concept: 1.0, denoiser: 1.0}, branch=branch):
        warnings.simplefilter("ignore")
        run()
    return found


@campaign(
    600,
    family=some.sampled_from(TOLD),
    prompts=some.lists(TEXTS, min_size=1, max_size=2),
    others=some.lists(TEXTS, min_size=2, max_size=2),
    alike=some.sampled_from(sorted(NEGATIVES)),
    guided=some.sampled_from([True, True, True, False]),
    images=some.integers(1, 2),
    callback=some.sampled_from(sorted(CALLBACKS)),
)
def test_the_rows_of_prompts_are_steered(
    family: str, prompts: list[str], others: list[str], alike: str, guided: bool, images: int, callback: str
) -> None:
    event(family)
    pipe = pipe_of(family)
    negatives = [NEGATIVES[alike](prompt, other) for prompt, other in zip(prompts, others, strict=False)]
    options: dict[str, Any] = {"negative_prompt": negatives, "num_images_per_prompt": images, "num_inference_steps": 3}
    if not guided:
        options[GUIDED.get(family, "guidance_scale")] = 0.0 if family == "zimage" else 1.0
    change = CALLBACKS[callback]
    if change is not None and "callback_on_step_end" in adapt(pipe).call_parameters:

        def hand_back(_: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            return {**given, "prompt_embeds": change(given["prompt_embeds"])}

        options |= {"callback_on_step_end": hand_back, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    base, both, made = (calls_of(family, prompts, branch, options) for branch in (None, "both", "conditional"))
    lines = CALLS[family] if guided else [([1, 1], [])]
    blocks = [line[::2] for line, _ in lines]
    step = len(blocks)
    for rows, before, all_on, after in zip(blocks, base[:step], both[:step], made[:step], strict=True):
        for i, on in enumerate(row for row in rows for _ in range(len(prompts) * images)):
            for expected, found in zip(all_on if on else before, after, strict=True):
                assert torch.equal(expected[i], found[i])
    recorder = Recorder()
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [], recorder, layout.describe()):
        draw(family, prompts, options)
    steered = [call.steered.tolist() for root, call in recorder.calls if root == adapt(pipe).family.denoiser]
    assert steered == [[on for on in rows for _ in range(len(prompts) * images)] for rows in blocks] * 3
