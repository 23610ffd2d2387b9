"""Masks by words: attention as an eager kernel has it, whose picture is whose, and what stays exactly as it was."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

import dsas_diffusion.steering.word_masks as words_of_prompts
from dsas_core import Concept, DSASError, Site
from dsas_core.steering.trace import Record
from dsas_diffusion import Schedule, find_sites, load_pipeline, steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.steering.cross_attention import cross_attention_layers
from tests.fixtures.checks import differ, same
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import BANANA, DOG, STEPS, Counting, bases, build_ddim_pipe, build_flow_pipe, latents
from tests.fixtures.visitors import Bare, seen_at

BOTH = "a dog to the left of a banana"
S = 0.7


@pytest.fixture(params=["flow", "ddim"])
def pipe(request: pytest.FixtureRequest, tiny_pipe: Any, ddim_pipe: Any) -> Any:
    return tiny_pipe if request.param == "flow" else ddim_pipe


def concept_of(pipe: Any, sites: Any = "cross", **fields: Any) -> Concept:
    seen = seen_at(pipe, find_sites(pipe, sites))
    return random_concept(seen, **{"unit": 0.5, "base": bases(pipe), **fields})


def masks(pipe: Any, prompts: Any, seeds: Sequence[int] = (0,), word: Any = "banana", **options: Any) -> list[Record]:
    """h of a concept whose own gate is 1, so M, at every site and step."""
    settings = {"sites": "cross", "strength": S, "branch": "conditional", **options.pop("settings", {})}
    concept = concept_of(pipe, settings.pop("sites"))
    strength = settings.pop("strength")
    with steer(pipe, {concept: strength}, gate="on", words={"random": word}, trace=True, **settings) as steering:
        latents(pipe, prompts, seeds, **options)
        assert steering.trace is not None
        return list(steering.trace.records)


class EagerProcessor(AttnProcessor):
    """diffusers' own attention without a fused kernel, keeping its probabilities."""

    def __init__(self, kept: list[torch.Tensor]) -> None:
        self.kept = kept

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        score, heads = attn.get_attention_scores, attn.heads

        def keep(query: Any, key: Any, mask: Any = None) -> Any:
            self.kept.append(score(query, key, mask).unflatten(0, (-1, heads)))
            return self.kept[-1].flatten(0, 1)

        attn.get_attention_scores = keep
        try:
            return super().__call__(attn, *args, **kwargs)
        finally:
            del attn.get_attention_scores


# ---- attention, and the mask that it makes --------------------------------------------------------------------------


def test_attention_is_that_of_an_eager_kernel(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[torch.Tensor] = []
    made = words_of_prompts.attention_to
    monkeypatch.setattr(words_of_prompts, "attention_to", lambda *args: (found.append(made(*args)), found[-1])[1])
    masks(pipe, [BOTH, DOG], (1, 2), word=["banana", "left of"], settings={"strength": 0.0})
    kept: list[torch.Tensor] = []
    original = pipe.unet.attn_processors
    layers = {f"unet.{name.removesuffix('.processor')}" for name in original}
    looking = {layer.path for layer in cross_attention_layers(adapt(pipe))}
    assert looking < layers
    eager = {
        name: EagerProcessor(kept) if f"unet.{name.removesuffix('.processor')}" in looking else processor
        for name, processor in original.items()
    }
    pipe.unet.set_attn_processor(eager)
    try:
        latents(pipe, [BOTH, DOG], (1, 2))
    finally:
        pipe.unet.set_attn_processor(dict(original))
    assert len(found) == len(kept) == STEPS * len(looking)
    tokens = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(BOTH).input_ids)
    columns = [i for i, token in enumerate(tokens) if token in ("left</w>", "of</w>", "banana</w>")]
    assert len(columns) == 3
    for ours, theirs in zip(found, kept, strict=True):
        assert (ours[0, 0] - theirs[2].mean(0)[:, columns].mean(-1)).abs().max() < 1e-5
        assert not ours[0, 1].any()


@pytest.mark.parametrize("sites", ["cross", "self", "block"])
def test_the_mask_is_in_the_unit_interval_and_differs_within_a_picture(pipe: Any, sites: str) -> None:
    records = masks(pipe, [BANANA, BOTH], (1, 2), settings={"sites": sites})
    for record in records:
        assert record.h.min() >= 0
        assert record.h.max() <= 1
    for row in range(2):
        assert torch.stack([record.h[row].std() for record in records if record.h.shape[1] > 4]).max() > 0.1


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("branch", ["conditional", "both"])
def test_a_prompt_has_its_mask_alone_and_in_a_batch(pipe: Any, branch: str, guidance: float) -> None:
    settings = {"settings": {"branch": branch}, "guidance_scale": guidance}
    prompts, seeds = [BANANA, DOG, BOTH], (1, 2, 3)
    together = masks(pipe, prompts, seeds, **settings)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        for record, own in zip(together, masks(pipe, prompt, (seed,), **settings), strict=True):
            assert torch.allclose(record.h[i::3], own.h, atol=1e-3)
            assert bool(own.h.any()) == (prompt != DOG)
            if branch == "both" and guidance > 1:
                assert torch.equal(own.h[0], own.h[1])


def test_pictures_of_one_prompt_have_masks_of_their_own(tiny_pipe: Any) -> None:
    records = masks(tiny_pipe, [BANANA, DOG], (1, 2, 3, 4), num_images_per_prompt=2)
    assert all(not record.h[2:].any() for record in records)
    assert differ(records[-1].h[0], records[-1].h[1])


def test_before_the_first_layer_nobody_knows_and_later_the_step_before_tells(ddim_pipe: Any) -> None:
    first = Site("unet.down_blocks.0.resnets.0", layout="first")
    concept = random_concept({first: 16}, base=bases(ddim_pipe))
    with steer(ddim_pipe, {concept: S}, gate="on", words={"random": "banana"}, trace=True) as steering:
        for _ in range(2):  # a new generation knows nothing of the last one
            latents(ddim_pipe, BANANA)
            assert steering.trace is not None
            assert [bool(record.h.any()) for record in steering.trace.records] == [False] + [True] * (STEPS - 1)


@pytest.mark.parametrize(
    ("prompt", "word", "there"),
    [
        ("a banana", "banana", True),
        ("A Banana, please", "BANANA", True),
        ("a dog and a banana", ["cat", "banana"], True),
        ("a dog to the left of a banana", "left of", True),
        ("a dog of the left", "left of", False),
        ("a zqx on a table", "zqx", True),  # letters, as the vocabulary lacks the word
        ("a wzqx on a table", "zqx", False),  # the end of a word is no word
        ("a zqxw on a table", "zqx", False),
        ("a cat " * 20 + "and a banana", "banana", False),  # cut off
        ("", "banana", False),
    ],
)
def test_whole_words_are_found_as_the_text_encoder_reads_them(
    tiny_pipe: Any, prompt: str, word: Any, there: bool
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = masks(tiny_pipe, prompt, word=word)
    assert any(record.h.any() for record in records) == there
    told = [str(warning.message) for warning in caught if "no prompt has the word" in str(warning.message)]
    assert len(told) == (not there)


def test_words_of_learned_tokens_are_found(tmp_path: Path) -> None:
    pipe = build_flow_pipe(tmp_path)
    pipe.load_textual_inversion({"<thing>": torch.randn(3, 32)}, token="<thing>")
    seen = [masks(pipe, "a <thing> banana", word=word) for word in ("<thing>", "banana", "<thing> banana")]
    assert all(record.h.any() for records in seen for record in records)
    assert len({tuple(records[-1].h.flatten().tolist()) for records in seen}) == 3
    with pytest.warns(UserWarning, match="no prompt has the word"):
        masks(pipe, BANANA, word="<thing>")


# ---- steering by it -------------------------------------------------------------------------------------------------


def test_it_multiplies_the_gate(pipe: Any) -> None:
    concept = concept_of(pipe)
    seen = {}
    for name, gate, words in (("h", None, None), ("M", "on", {"random": "banana"}), ("hM", None, {"random": "banana"})):
        with steer(pipe, {concept: 0.0}, gate=gate, words=words, trace=True) as steering:
            latents(pipe, BOTH)
            assert steering.trace is not None
            seen[name] = [record.h for record in steering.trace.records]
    for h, mask, product in zip(seen["h"], seen["M"], seen["hM"], strict=True):
        assert same(product, h * mask)


@pytest.mark.parametrize("settings", [{}, {"gate": "on"}, {"branch": "both"}, {"schedule": Schedule.between(900, 100)}])
def test_what_is_exact(pipe: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    concept, bare = concept_of(pipe, ["cross", "text"]), [Bare.of(pipe.unet), Bare.of(pipe.text_encoder)]
    base = latents(pipe, BOTH)
    with steer(pipe, {concept: S}, **settings):
        plain = latents(pipe, BOTH)
    with steer(pipe, {concept: 0.0}, words={"random": "banana"}, **settings) as steering:
        assert torch.equal(latents(pipe, BOTH), base)
        steering.strengths["random"] = S
        masked = latents(pipe, BOTH)
        assert differ(masked, plain)
        assert differ(masked, base)
    assert torch.equal(latents(pipe, BOTH), base)
    assert [Bare.of(pipe.unet), Bare.of(pipe.text_encoder)] == bare
    monkeypatch.setattr(words_of_prompts, "normalise_attention", lambda maps, *_: torch.ones_like(maps))
    with steer(pipe, {concept: S}, words={"random": "banana"}, **settings):
        assert same(latents(pipe, BOTH), plain)


def test_a_prompt_without_the_word_stays_as_it_is(pipe: Any) -> None:
    prompts, seeds = [BANANA, DOG], (1, 2)
    base = latents(pipe, prompts, seeds)
    for branch in ("conditional", "both"):
        with steer(pipe, {concept_of(pipe): S}, gate="on", branch=branch, words={"random": "banana"}):
            made = latents(pipe, prompts, seeds)
        assert torch.equal(made[1], base[1])
        assert differ(made[0], base[0])


def test_each_concept_has_its_own_words_or_none(tiny_pipe: Any) -> None:
    concepts = {concept_of(tiny_pipe, name=name, seed=i): S for i, name in enumerate(("first", "second", "third"))}
    words = {"first": "banana", "third": "dog"}
    for combine in ("sum", "blend"):
        with steer(tiny_pipe, concepts, gate="on", words=words, combine=combine, trace=True) as steering:
            latents(tiny_pipe, BOTH)
            trace = steering.trace
            assert trace is not None
            h = {concept.name: trace.select(concept.name)[-1].h for concept in concepts}
        assert bool((h["second"] == 1).all())
        assert differ(h["first"], h["third"])


def test_a_strength_that_is_chosen_by_itself_is_chosen_within_the_mask(tiny_pipe: Any) -> None:
    concept = concept_of(tiny_pipe, kind="additive")
    with steer(tiny_pipe, {concept: "auto"}, words={"random": "banana"}, trace=True) as steering:
        latents(tiny_pipe, BANANA, seeds=(1,))
        assert steering.trace is not None
        for record in steering.trace.records:
            assert not record.change[record.h == 0].any()
        assert any(record.change.any() for record in steering.trace.records)


def test_embeddings_made_within_the_block_have_the_words_of_their_prompts(tiny_pipe: Any) -> None:
    base = latents(tiny_pipe, BANANA)
    with steer(tiny_pipe, {concept_of(tiny_pipe): S}, words={"random": "banana"}):
        made = latents(tiny_pipe, BANANA)
        positive, negative = tiny_pipe.encode_prompt(BANANA, "cpu", 1, True)
        tiny_pipe.encode_prompt("another prompt with a banana", "cpu", 1, False)
        given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        assert torch.equal(latents(tiny_pipe, None, **given), made)
        with pytest.raises(DSASError, match="prompt_embeds were given, in which words cannot be found"):
            latents(tiny_pipe, None, prompt_embeds=positive.clone(), negative_prompt_embeds=negative)
    assert differ(made, base)


def test_embeddings_made_for_several_pictures_have_the_words_of_their_prompts(tiny_pipe: Any) -> None:
    seeds = (1, 2, 3, 4)
    with steer(tiny_pipe, {concept_of(tiny_pipe): S}, words={"random": "banana"}):
        made = latents(tiny_pipe, [BANANA, DOG], seeds, num_images_per_prompt=2)
        positive, negative = tiny_pipe.encode_prompt([BANANA, DOG], "cpu", 2, True)
        given = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        assert torch.equal(latents(tiny_pipe, None, seeds, **given), made)


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.slow
def test_one_compiled_graph_serves(tmp_path: Path) -> None:
    pipe = build_ddim_pipe(tmp_path, shallow=True)
    concept, counting = concept_of(pipe, ["cross", "self"]), Counting()

    def run() -> list[torch.Tensor]:
        return [latents(pipe, prompts, (1, 2)) for prompts in ([BANANA, DOG], [DOG, BOTH])]

    with steer(pipe, {concept: S}, words={"random": "banana"}):
        eager = run()
    with steer(pipe, {concept: S}, words={"random": "banana"}):
        pipe.unet = torch.compile(pipe.unet, backend=counting, fullgraph=True)
        compiled = run()
    assert counting.graphs == 1
    assert all(same(a, b) for a, b in zip(compiled, eager, strict=True))


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"other": "banana"}, "words for 'other', but steered are random"),
        ({"random": ""}, "words of 'random': expected a word of the prompt, or a list of them; found ''"),
        ({"random": []}, r"found \[\]"),
        ({"random": ["banana", " "]}, r"found \['banana', ' '\]"),
        ({"random": 3}, "found 3"),
    ],
)
def test_bad_words(tiny_pipe: Any, words: Any, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        steer(tiny_pipe, {concept_of(tiny_pipe): S}, words=words)
    assert Bare.of(tiny_pipe.unet).hooks == 0
    assert "encode_prompt" not in vars(tiny_pipe)


def test_a_concept_that_steers_the_text_alone_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(DSASError, match=r'steers the text alone, .* learn it with sites="denoiser"'):
        steer(tiny_pipe, {concept_of(tiny_pipe, "text"): S}, words={"random": "banana"})


def test_a_site_of_some_patches_is_refused(tiny_pipe: Any) -> None:
    path = find_sites(tiny_pipe, "cross")[0].path
    concept = random_concept({Site(path, tokens=(0, 4)): 32}, base=bases(tiny_pipe))
    with pytest.raises(DSASError, match=r"attn2\[0:4\] has but some of the patches"):
        steer(tiny_pipe, {concept: S}, words={"random": "banana"})


def test_words_in_the_denoiser_are_no_patches(tiny_pipe: Any) -> None:
    keys = cross_attention_layers(adapt(tiny_pipe))[0].keys
    concept = random_concept(seen_at(tiny_pipe, [keys, Site("unet.conv_in", layout="first")]), base=bases(tiny_pipe))
    with steer(tiny_pipe, {concept: S}, gate="on", words={"random": "banana"}, trace=True) as steering:
        latents(tiny_pipe, BANANA)
        assert steering.trace is not None
        assert all(bool((record.h == 1).all()) for record in steering.trace.select("random", str(keys)))


def test_attention_that_cannot_be_seen(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    pipe = build_flow_pipe(tmp_path)
    concept = concept_of(pipe)
    with steer(pipe, {concept: S}, words={"random": "banana"}):
        made = latents(pipe, BANANA)
        pipe.unet.fuse_qkv_projections()
        with pytest.raises(DSASError, match=r"does not show its keys, .* call unfuse_qkv_projections"):
            latents(pipe, BANANA, num_inference_steps=1)
        pipe.unet.unfuse_qkv_projections()
        assert torch.equal(latents(pipe, BANANA), made)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "mid_block_type": None}
    pipe.unet = UNet2DConditionModel(8, 4, 4, **blocks, block_out_channels=(16, 32), norm_num_groups=8)
    with pytest.raises(DSASError, match="unet has no cross-attention"):
        cross_attention_layers(adapt(pipe))


# ---- on the command line --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a concept that steers the denoiser of the tests' model."""
    pipe = load_pipeline(model, device="cpu")
    return str(concept_of(pipe, unit=5.0).save_pretrained(tmp_path_factory.mktemp("concepts") / "random"))


def test_the_command_line_takes_words(dsas: Any, model: str, saved: str, tmp_path: Path) -> None:
    shared = ("--model", model, "--concept", saved, "-p", "a dog", "--steps", 2, "--json")
    for word, there in (("dog", True), ("cat", False)):
        words = ("--words", f"random={word}", "--words", "random=house")
        code, text, err = dsas("generate", *shared, *words, "--gate", "on", "--compare", "--out", tmp_path / word)
        assert (code, "no prompt has the word" in err) == (0, not there)
        assert json.loads(text)["words"] == {"random": [word, "house"]}
        pictures = [(tmp_path / word / name).read_bytes() for name in ("001-base.png", "001.png")]
        assert (Image.open(BytesIO(pictures[0])).tobytes() != Image.open(BytesIO(pictures[1])).tobytes()) == there
        strip = ("--from", 0, "--to", 1, "--count", 2, "--gate", "on", "--out", tmp_path / f"{word}.png")
        swept = json.loads(dsas("sweep", *shared, *words, *strip)[1])
        assert swept["words"] == {"random": [word, "house"]}
        assert [change > 0 for change in swept["rows"][0]["change"]] == [False, there]
        looked = json.loads(dsas("doctor", *shared, *words)[1])
        assert any("where the picture looks at" in line for line in looked["conclusions"]) != there


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("generate -p x -c {saved} --words dog", 2, "expected NAME=WORD, found 'dog'"),
        ("generate -p x -c {saved} --words random=", 2, "expected NAME=WORD, found 'random='"),
        ("generate -p x --words random=dog", 2, "--words are of a --concept: give one"),
        ("generate --model {model} -p x -c {saved} --words other=dog --quiet", 1, "words for 'other', but steered are"),
        ("doctor --model builtin:chat -p x -c {saved} --words random=dog", 2, "it takes no --words"),
    ],
)
def test_bad_words_are_one_line(
    dsas: Any, model: str, saved: str, tmp_path: Path, argv: str, code: int, message: str
) -> None:
    out = [] if argv.startswith("doctor") else ["--out", tmp_path / "new"]
    given = dsas(*argv.format(model=model, saved=saved).split(), *out)
    assert given[0] == code
    assert message in given[2]
    assert given[2].count("\n") == 1
    assert list(tmp_path.iterdir()) == []
