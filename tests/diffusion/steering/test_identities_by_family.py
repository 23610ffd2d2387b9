"""The identities, on a tiny pipeline of every family and at every role that it has."""

from __future__ import annotations

import re
import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch

from dsas_core import Concept, DSASError, Site, visit
from dsas_diffusion import find_sites, learn, steer
from dsas_diffusion.generation.pictures import decode
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from dsas_diffusion.pipelines.sites import role_of, site_name, unused_layers
from tests.diffusion.learning.test_learn import PROMPTS
from tests.fixtures.checks import same
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import bases
from tests.fixtures.pipelines import FAMILIES, GUIDED, NEGATIVE, SIZE, STEPS, UNTOLD, WIDTH, brief, build, latents
from tests.fixtures.visitors import Bare, Recorder

BANANA, DOG = "a banana", "a red dog"
ROLES = {
    "sd": ("text", "cross", "embeddings", "self", "block"),
    "sdxl": ("text", "cross", "embeddings", "self", "block"),
    "sd3": ("text", "image", "prompt", "self", "block"),
    "flux": ("text", "image", "prompt", "block"),
    "pixart": ("text", "cross", "embeddings", "self", "block"),
    "sana": ("text", "cross", "embeddings", "self", "block"),
    "flux2": ("text", "image", "prompt", "block"),
    "klein": ("text", "image", "prompt", "block"),
    "qwen": ("text", "image", "prompt", "block"),
    "zimage": ("text", "image", "prompt", "block"),
    "lumina": ("text", "image", "prompt", "block"),
}
EVERY = [(family, role) for family, roles in ROLES.items() for role in roles]


@cache
def pipe_of(family: str) -> Any:
    if family not in FAMILIES:
        pytest.skip(f"this diffusers has no {family}")
    return build(family, Path(mkdtemp()))


@cache
def base_of(family: str) -> torch.Tensor:
    return latents(pipe_of(family), family, BANANA)


@cache
def invariant(family: str) -> None:
    """Skip where an unsteered picture depends on its batch: diffusers 0.35 lets Qwen-Image attend to padding."""
    pipe = pipe_of(family)
    batch = latents(pipe, family, [BANANA, DOG], (0, 3))
    if not same(batch[:1], base_of(family)):
        pytest.skip(f"pictures of {family} depend on their batch")


def seen_in(
    family: str, sites: list[Site], prompts: Any = BANANA, rows: str = "conditional", **options: Any
) -> Recorder:
    """Activations at sites of a pipeline, and the calls in which they were read."""
    pipe, recorder = pipe_of(family), Recorder()
    with BatchLayout(adapt(pipe), rows) as layout, visit(adapt(pipe).roots, sites, recorder, layout.describe()):
        latents(pipe, family, prompts, **options)
    return recorder


@cache
def concept_of(family: str, role: str) -> Concept:
    """A random concept at every site of a role."""
    pipe = pipe_of(family)
    recorder = seen_in(family, find_sites(pipe, role))
    assert set(recorder.seen) == set(find_sites(pipe, role))
    sites = {site: seen[0] for site, seen in recorder.seen.items()}
    return random_concept(sites, edges=() if role == "text" else (500.0,), base=bases(pipe), kind="additive")


@pytest.mark.parametrize(("family", "role"), EVERY)
def test_off_and_detached_are_bit_exact(family: str, role: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, role)
    bare = [Bare.of(root) for root in adapt(pipe).roots.values()]
    with steer(pipe, {concept: 1.0}) as steering:
        steered = latents(pipe, family, BANANA)
        assert set(steering.fired) == {str(site) for site in steering.sites}
        steering.strengths[concept.name] = 0.0
        assert torch.equal(latents(pipe, family, BANANA), base_of(family))
    assert float((steered - base_of(family)).abs().max()) > 1e-3 * float(base_of(family).std())
    assert [Bare.of(root) for root in adapt(pipe).roots.values()] == bare
    assert torch.equal(latents(pipe, family, BANANA), base_of(family))


@pytest.mark.parametrize(("family", "role"), EVERY)
def test_strengths_of_a_batch_are_those_of_single_pictures(family: str, role: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, role)
    invariant(family)
    with steer(pipe, {concept: [1.0, 0.0, -0.5]}):
        batch = latents(pipe, family, [BANANA, BANANA, DOG], (0, 0, 3))
    with steer(pipe, {concept: 1.0}) as steering:
        singles = [latents(pipe, family, BANANA)]
        steering.strengths[concept.name] = -0.5
        singles.append(latents(pipe, family, DOG, (3,)))
    scale = float(base_of(family).std())
    assert same(batch[[0, 2]] / scale, torch.cat(singles) / scale)
    assert same(batch[1:2] / scale, base_of(family) / scale)
    assert not same(batch[:1] / scale, base_of(family) / scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_have_their_timestep(family: str) -> None:
    pipe = pipe_of(family)
    calls = [call for root, call in seen_in(family, []).calls if root == adapt(pipe).family.denoiser]
    shown = [float(call.timestep) for call in calls if call.timestep is not None]
    expected = [float(t) for t in pipe.scheduler.timesteps]
    assert len(set(expected)) == STEPS
    assert sorted(set(shown), reverse=True) == pytest.approx(expected, abs=1e-2)


#: the denoiser's calls of one step with two prompts: which rows have a prompt, and whose they are
CALLS = {
    "sd": [([0, 0, 1, 1], [0, 1, 0, 1])],
    "sdxl": [([0, 0, 1, 1], [0, 1, 0, 1])],
    "sd3": [([0, 0, 1, 1], [0, 1, 0, 1])],
    "flux": [([1, 1], [0, 1]), ([0, 0], [0, 1])],
    "pixart": [([0, 0, 1, 1], [0, 1, 0, 1])],
    "sana": [([0, 0, 1, 1], [0, 1, 0, 1])],
    "flux2": [([1, 1], [0, 1])],
    "klein": [([1, 1], [0, 1]), ([0, 0], [0, 1])],
    "qwen": [([1, 1], [0, 1]), ([0, 0], [0, 1])],
    "zimage": [([1, 1, 0, 0], [0, 1, 0, 1])],
    "lumina": [([1, 1], [0, 1]), ([0, 0], [0, 1])],
}


@pytest.mark.parametrize("rows", ["conditional", "unconditional", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_guidance(family: str, rows: str) -> None:
    pipe = pipe_of(family)
    calls = seen_in(family, [], [BANANA, DOG], seeds=(1, 2), rows=rows).calls
    told = {"conditional": lambda on: on, "unconditional": lambda on: 1 - on, "both": lambda on: 1}[rows]
    expected = [([told(on) for on in line], whose) for line, whose in CALLS[family] * STEPS]
    found = [
        (call.steered.tolist(), call.prompts.tolist()) for root, call in calls if root == adapt(pipe).family.denoiser
    ]
    assert found == expected
    texts = [call.steered.tolist() for root, call in calls if root == "text_encoder"]
    assert texts == [[told(1)] * 2, [told(0)] * 2][: 1 if family == "flux2" else 2]
    for root in adapt(pipe).roots:  # the same in every text encoder
        if root != adapt(pipe).family.denoiser:
            assert [call.steered.tolist() for name, call in calls if name == root] == texts


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNTOLD])
def test_negative_prompts_equal_to_the_prompts(family: str) -> None:
    calls = seen_in(family, [], [BANANA, DOG], seeds=(1, 2), negative_prompt=[BANANA, DOG]).calls
    found = [(call.steered.tolist(), call.prompts.tolist()) for root, call in calls if root == "text_encoder"]
    assert found == [([1, 1], [0, 1]), ([0, 0], [0, 1])]
    found = [(call.steered.tolist(), call.prompts.tolist()) for root, call in calls if root in ("unet", "transformer")]
    assert found == CALLS[family] * STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_without_guidance_every_row_has_a_prompt(family: str) -> None:
    off = {GUIDED.get(family, "guidance_scale"): 0.0 if family == "zimage" else 1.0, "num_images_per_prompt": 2}
    calls = seen_in(family, [], [BANANA, DOG], seeds=(1, 2, 3, 4), **off).calls
    denoiser = [call for root, call in calls if root == adapt(pipe_of(family)).family.denoiser]
    assert [call.steered.tolist() for call in denoiser] == [[1] * 4] * STEPS
    assert [call.prompts.tolist() for call in denoiser] == [[0, 0, 1, 1]] * STEPS


def test_negative_prompts_are_known_when_they_are_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    def clean(text: str | list[str], clean_caption: bool = False) -> list[str]:
        listed = [text] if isinstance(text, str) else text
        return [one.replace("dog", "cat") if clean_caption else one for one in listed]

    monkeypatch.setattr(pipe_of("pixart"), "_text_preprocessing", clean)
    calls = seen_in("pixart", [], clean_caption=True).calls
    assert [call.steered.tolist() for root, call in calls if root == "text_encoder"] == [[1], [0]]


@pytest.mark.parametrize(("family", "negative"), [("flux", NEGATIVE), ("klein", "")])
def test_a_negative_prompt_may_be_the_next_prompt(family: str, negative: str) -> None:
    pipe, recorder = pipe_of(family), Recorder()
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [], recorder, layout.describe()):
        latents(pipe, family, BANANA, num_inference_steps=1)
        recorder.calls.clear()
        pipe.encode_prompt(negative)
        assert layout.request.texts == [negative]
    assert {root: call.steered.tolist() for root, call in recorder.calls if root == "text_encoder"} == {
        "text_encoder": [1]
    }


@pytest.mark.parametrize("strengths", [[1.0, 0.5], [1.0, 0.5, 0.0, 1.0]])
def test_strengths_are_as_many_as_prompts(strengths: list[float]) -> None:
    concept = concept_of("flux", "image")
    with (
        steer(pipe_of("flux"), {concept: strengths}),
        pytest.raises(DSASError, match=rf"given for {len(strengths)} prompts, but the call has 3"),
    ):
        latents(pipe_of("flux"), "flux", [BANANA, DOG, BANANA], (0, 1, 2))


def ready_made(family: str) -> dict[str, Any]:
    """Embeddings of two prompts and their negative prompts, as a pipeline of a family takes them."""
    pipe, texts, others = pipe_of(family), [BANANA, DOG], ["", ""]
    if family in ("sd", "sdxl", "sd3"):
        words = {"negative_prompt": others, "do_classifier_free_guidance": True, "device": "cpu"}
        words |= {"prompt_2": texts, "prompt_3": texts} if family == "sd3" else {"num_images_per_prompt": 1}
        made = pipe.encode_prompt(texts, **words)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        names = names[: len(made)]
    elif family in ("pixart", "sana"):
        made = pipe.encode_prompt(texts, negative_prompt=others, device="cpu", max_sequence_length=12)
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    elif family == "flux":
        made, names = pipe.encode_prompt(texts, texts), ("prompt_embeds", "pooled_prompt_embeds", "")
    elif family == "zimage":
        made = pipe.encode_prompt(texts, negative_prompt=others, max_sequence_length=16)
        names = ("prompt_embeds", "negative_prompt_embeds")
    elif family == "lumina":
        made = pipe.encode_prompt(texts, negative_prompt=others, max_sequence_length=16)
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
    else:
        made = (*pipe.encode_prompt(texts), *pipe.encode_prompt(others))
        mask = "prompt_embeds_mask" if family == "qwen" else ""
        names = ("prompt_embeds", mask, "negative_prompt_embeds", mask and f"negative_{mask}")
    return {name: part for name, part in zip(names, made, strict=True) if name}


@pytest.mark.parametrize("inside", [False, True], ids=["made before", "made inside"])
@pytest.mark.parametrize("family", ["klein", "qwen", "zimage", "lumina"])
def test_embeddings_that_are_ready_made(family: str, inside: bool) -> None:
    """Each generation tells its rows anew, and whether the text encoder has been steered."""
    pipe, recorder = pipe_of(family), Recorder()
    given = {} if inside else ready_made(family)
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [], recorder, layout.describe()):
        given = ready_made(family) if inside else given
        for _ in range(2):
            options = {GUIDED.get(family, "guidance_scale"): 3.0, "output_type": "latent", **given}
            pipe(height=SIZE, width=SIZE, num_inference_steps=1, **options)
            assert layout.request.embeddings in (("", "encoded here") if inside else ("given",))
    calls = [call for root, call in recorder.calls if root == adapt(pipe).family.denoiser]
    assert [(call.steered.tolist(), call.prompts.tolist()) for call in calls] == CALLS[family] * 2


@pytest.mark.parametrize(
    "family", sorted(set(CALLS) - {"flux2", "klein"})
)  # which are told apart by their text encoder
def test_embeddings_are_enough_where_no_text_encoder_is_loaded(family: str) -> None:
    """As people do who have little memory."""
    whole, given, concept = (
        pipe_of(family),
        ready_made(family),
        concept_of(family, adapt(pipe_of(family)).family.denoiser_default[0]),
    )
    parts = [part for encoder in adapt(whole).text_encoders for part in (encoder.part, encoder.tokenizer)]
    bare = type(whole)(**{**whole.components, **dict.fromkeys(parts)})
    bare.set_progress_bar_config(disable=True)
    options = {"height": SIZE, "width": SIZE, "num_inference_steps": 1, "output_type": "latent"}
    options |= {"use_resolution_binning": False} if family in ("pixart", "sana") else {}
    given |= {"negative_prompt": None} if family in ("pixart", "sana") else {}  # theirs is "" where none is given
    made = []
    for pipe, strength in ((whole, 1.0), (bare, 1.0), (bare, 0.0)):
        with steer(pipe, {concept: strength}):
            made.append(pipe(**options, **given, generator=torch.Generator().manual_seed(0)).images)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[1], made[2])
    with steer(bare, {concept: 1.0}), pytest.raises(DSASError, match="has no text encoder to read prompts with"):
        bare(BANANA, **options)


@pytest.mark.parametrize(("family", "role"), EVERY)
def test_rows_of_negative_prompts_are_untouched(family: str, role: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, role)
    base = first_step(family)
    with steer(pipe, {concept: 1.0}):
        steered = first_step(family)
    assert len(base) == len(steered) == len(CALLS[family])
    for (rows, _), before, after in zip(CALLS[family], base, steered, strict=True):
        for row, steers in enumerate(rows):
            text, made = (torch.equal(one[row], other[row]) for one, other in zip(before, after, strict=True))
            assert steers or (text and made)  # what the denoiser reads of the text, and what it makes
            assert not (steers and made)


def first_step(family: str) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """What the denoiser is given of the texts, and what it makes of it, in each call of one step."""
    pipe, found = pipe_of(family), []

    def note(_: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given = args[2] if len(args) > 2 and isinstance(args[2], list) else list(kwargs["encoder_hidden_states"])
        found.append(([one.clone() for one in given], [one.clone() for one in output[0]]))

    handle = getattr(pipe, adapt(pipe).family.denoiser).register_forward_hook(note, with_kwargs=True)
    try:
        latents(pipe, family, [BANANA, DOG], (1, 2), num_inference_steps=1)
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("family", [family for family, roles in ROLES.items() if "prompt" in roles])
def test_streams_are_cut_where_the_prompt_ends(family: str) -> None:
    """Patches and tokens together are all that a joint sequence holds, and each knows its own."""
    pipe = pipe_of(family)
    recorder = seen_in(family, [*find_sites(pipe, "image"), *find_sites(pipe, "prompt")])
    joints = [call.joint for root, call in recorder.calls if root == adapt(pipe).family.denoiser]
    for site, found in recorder.seen.items():
        assert [x.shape[1] for x in found] == [getattr(joint, site.stream) for joint in joints]
    assert [Site.from_dict(site.to_dict()) for site in recorder.seen] == list(recorder.seen)


LONG = "a red dog at night"
#: families whose prompts keep their own length in the denoiser
RAGGED = ("qwen", "zimage", "lumina")


@pytest.mark.parametrize("role", ["image", "prompt"])
@pytest.mark.parametrize("family", RAGGED)
def test_prompts_of_unequal_length_in_a_batch_are_as_alone(family: str, role: str) -> None:
    """Wherever a row's text ends: its patches and tokens are found, and what is behind a shorter text counts not."""
    invariant(family)
    site = find_sites(pipe_of(family), role)[-1]

    def seen(prompts: Any, seeds: tuple[int, ...]) -> list[torch.Tensor]:
        recorder = seen_in(family, [site], prompts, seeds=seeds)
        x = recorder.seen[site][0]
        call = next(call for root, call in recorder.calls if root == site.root)
        mask = call.position_mask(site, x.shape[1])
        return [row if mask is None else row[mask[i] > 0] for i, row in enumerate(x)]

    batch = seen([BANANA, LONG], (1, 2))
    assert role == "image" or len(batch[0]) < len(batch[1])
    assert same(batch[0], seen(BANANA, (1,))[0])
    assert same(batch[1], seen(LONG, (2,))[0])


@pytest.mark.parametrize("family", RAGGED)
def test_padding_behind_a_shorter_prompt_is_untouched(family: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, "prompt")
    with steer(pipe, {concept: 1.0}, trace=True) as steering:
        latents(pipe, family, [BANANA, LONG], (1, 2))
        assert steering.trace is not None
        records = [record for record in steering.trace.select(concept.name) if len(record.h)]
    assert records
    for record in records:
        assert record.mask is not None
        assert not record.mask.bool().all()
        assert float(record.change[record.mask == 0].abs().max()) == 0
        assert float(record.change[record.mask == 1].abs().min()) > 0


#: what an encoder reads of "a banana" that counts, all of it and the words alone; <unk> is of the template
COUNTED = {
    "sana": ("a banana", "a banana"),
    "flux2": ("a banana <|im_end|>", "a banana <|im_end|>"),
    "klein": ("a banana <|im_end|> <|im_start|> <unk> <unk>", "a banana <|im_end|>"),
    "qwen": ("a banana <|im_end|> <unk>", "a banana <|im_end|>"),
    "zimage": ("a banana <|im_end|> <|im_start|> <unk>", "a banana <|im_end|>"),
    "lumina": ("a banana", "a banana"),
}


@pytest.mark.parametrize("positions", ["all", "words"])
@pytest.mark.parametrize("family", COUNTED)
def test_instructions_in_front_of_a_prompt_do_not_count(family: str, positions: str) -> None:
    pipe, found = pipe_of(family), []

    def keep(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0])

    recorder = Recorder()
    handle = pipe.text_encoder.register_forward_pre_hook(keep, with_kwargs=True)
    with (
        BatchLayout(adapt(pipe), positions=positions) as layout,
        visit(adapt(pipe).roots, [], recorder, layout.describe()),
    ):
        latents(pipe, family, BANANA)
    handle.remove()
    calls = [call for root, call in recorder.calls if root == "text_encoder"]
    assert calls[0].mask is not None
    ids = found[0][calls[0].mask > 0]
    assert " ".join(pipe.tokenizer.convert_ids_to_tokens(ids.tolist())) == COUNTED[family][positions == "words"]


@pytest.mark.parametrize(
    ("family", "clip_skip", "layers", "warns"),
    [
        ("sd", None, "text.1", False),
        ("sdxl", None, "text_2.1", False),
        ("sdxl", None, r"text_encoder_2\.encoder\.layers\.2", True),
        ("sdxl", 1, "text_2.1", True),
        ("sd3", None, r"text_encoder\.encoder\.layers\.2", True),
        ("flux", None, "text.2", False),
        ("flux2", None, "text.29", False),
        ("flux2", None, r"text_encoder\.model\.language_model\.layers\.30", True),
        ("klein", None, r"text_encoder\.model\.layers\.27", True),
        ("qwen", None, "text.2", False),
        ("zimage", None, r"text_encoder\.layers\.2", True),
        ("lumina", None, r"text_encoder\.layers\.2", True),
    ],
)
def test_unused_layers_warn(family: str, clip_skip: int | None, layers: str, warns: bool) -> None:
    pipe = pipe_of(family)
    sites = find_sites(pipe, layers)
    concept = random_concept(dict.fromkeys(sites, WIDTH), base=bases(pipe), kind="additive")
    options = {} if clip_skip is None else {"clip_skip": clip_skip}
    with warnings.catch_warnings(record=True) as caught, steer(pipe, {concept: 1.0}):
        warnings.simplefilter("always")
        latents(pipe, family, BANANA, **options)
    messages = [str(item.message) for item in caught if "reads the tokens of an earlier layer" in str(item.message)]
    assert bool(messages) == warns
    assert not warns or all(str(site) in messages[0] for site in sites)


def test_clip_skip_of_stable_diffusion_leaves_out_the_last_layers() -> None:
    """Not through the pipeline: with the transformers of today, diffusers' own clip_skip fails there (issue 13833)."""
    pipe = pipe_of("sd")
    sites = find_sites(pipe, "text")
    assert [unused_layers(adapt(pipe).family, adapt(pipe).roots, sites, skip) for skip in (0, 1, 2)] == [
        [],
        sites[1:],
        sites,
    ]


def test_the_text_role_leaves_out_unused_layers() -> None:
    names = [site_name(site) for site in find_sites(pipe_of("sd3"), "text")]
    assert names == ["text.0", "text.1", "text_2.0", "text_2.1", "text_3.0", "text_3.1"]


@pytest.mark.parametrize(
    ("family", "pattern", "paths"),
    [
        ("sdxl", "up.0.1", [f"unet.up_blocks.0.attentions.1.transformer_blocks.{i}.attn2" for i in range(2)]),
        ("sdxl", "self:up.0.1.1", ["unet.up_blocks.0.attentions.1.transformer_blocks.1.attn1"]),
        ("sdxl", "mid", [f"unet.mid_block.attentions.0.transformer_blocks.{i}.attn2" for i in range(2)]),
        ("sdxl", "block:up.0.resnet.1", ["unet.up_blocks.0.resnets.1"]),
        ("sdxl", "text_2", [f"text_encoder_2.encoder.layers.{i}" for i in range(2)]),
        ("sd3", "block.2", ["transformer.transformer_blocks.2.attn"]),
        ("sd3", "prompt:block.1", ["transformer.transformer_blocks.1.attn"]),
        ("flux", "single", [f"transformer.single_transformer_blocks.{i}.attn" for i in range(2)]),
        ("flux", "text_2.1", ["text_encoder_2.encoder.block.1"]),
        ("sana", "text.0", ["text_encoder.layers.0"]),
        ("flux2", "single.1", ["transformer.single_transformer_blocks.1.attn"]),
        ("flux2", "text.29", ["text_encoder.model.language_model.layers.29"]),
        ("klein", "text.26", ["text_encoder.model.layers.26"]),
        ("qwen", "text.2", ["text_encoder.model.language_model.layers.2"]),
        ("zimage", "block.1", ["transformer.layers.1.attention"]),
        ("zimage", "block:block.1", ["transformer.layers.1"]),
        ("lumina", "prompt:block.0", ["transformer.layers.0.attn"]),
    ],
)
def test_sites_by_their_short_names(family: str, pattern: str, paths: list[str]) -> None:
    pipe = pipe_of(family)
    sites = find_sites(pipe, pattern)
    assert [site.path for site in sites] == paths
    name = pattern.rpartition(":")[2]
    assert all(f"{site_name(site)}.".startswith(f"{name}.") for site in sites)
    assert {role_of(adapt(pipe).family, site) for site in sites} <= set(adapt(pipe).family.groups)


@pytest.mark.parametrize("sides", [None, (2 * SIZE, SIZE)], ids=["square", "wide"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoded_latents_are_the_pipelines_pictures(family: str, sides: tuple[int, int] | None) -> None:
    pipe, size = pipe_of(family), {} if sides is None else {"width": sides[0], "height": sides[1]}
    ours = decode(adapt(pipe), latents(pipe, family, [BANANA, DOG], (1, 2), **size), sides=sides)
    own = latents(pipe, family, [BANANA, DOG], (1, 2), output_type="pil", **size)
    assert [picture.size for picture in ours] == [sides or (SIZE, SIZE)] * 2
    for one, other in zip(ours, own, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in ("sdxl", "flux", "zimage") else pytest.mark.slow) for name in FAMILIES],
)
@pytest.mark.usefixtures("one_unit")
def test_learning(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A concept of the denoiser from a prompt file: it fires, it can be saved, and it leaves controls alone."""
    pipe = pipe_of(family)
    monkeypatch.setattr(type(pipe), "__call__", brief(pipe, family))
    alike = {"site_weight": "none"}  # a random denoiser may show little of what its prompts differ in
    concept = learn(pipe, PROMPTS, sites="denoiser", count=8, steps=2, size=SIZE, edges=(), batch=4, recipe=alike)
    assert concept.provenance["settings"]["size"] == SIZE
    assert set(concept.steered_sites) <= set(find_sites(pipe, "denoiser"))
    readers = {str(item.site) for item in concept.interventions if item.read_only}
    assert readers == set(concept.evidence["mask"]["sites"]) <= set(map(str, adapt(pipe).find_mask_sites()))
    assert {item.site.stream for item in concept.interventions} == ({"image"} if "image" in ROLES[family] else {""})
    again = Concept.from_pretrained(concept.save_pretrained(tmp_path / "concept"))
    assert again == concept
    base = latents(pipe, family, BANANA)
    with steer(pipe, {again: 2.0}, trace=True) as steering:
        steered = latents(pipe, family, BANANA)
        assert steering.trace is not None
        heat = steering.trace.heat(concept.name, (SIZE, SIZE))
    assert not torch.equal(base, steered)
    assert heat.shape == (SIZE, SIZE)
    assert 0 < heat.max() <= 1


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("sd", "sdxl")])
def test_words_of_other_tokens_than_those_of_clip_are_refused(family: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, ROLES[family][1])
    with pytest.raises(DSASError, match=f"words are known of .* not of {re.escape(adapt(pipe).family.name)}"):
        steer(pipe, {concept: 1.0}, words={concept.name: "banana"})
    assert "encode_prompt" not in vars(pipe)
