"""Which rows are the prompt's, where texts, embeddings and callers can be mistaken for one another."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from dsas_core import DSASError, visit
from dsas_core.errors import UnsupportedError
from dsas_diffusion import steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from tests.diffusion.pipelines.test_other_pipelines import other
from tests.diffusion.steering.test_identities_by_family import CALLS, base_of, concept_of, pipe_of, ready_made
from tests.fixtures.pipelines import FAMILIES, GUIDED, SIZE, STEPS, UNTOLD, build, latents
from tests.fixtures.visitors import Recorder

BANANA, DOG = "a banana", "a red dog"
#: longer than every tokenizer reads, and of tokens that do not repeat at the same distance
LONG = " ".join(
    f"a {thing} on the {place}" for thing in ("banana", "dog", "cat") for place in ("table", "grass", "sea")
)
LONG_NEGATIVE = " ".join(
    f"the {thing} and a {place}" for thing in ("pig", "car", "boat") for place in ("tree", "house")
)
TOLD = [family for family in FAMILIES if family not in UNTOLD]
TWO_CALLS = [family for family in TOLD if len(CALLS[family]) == 2]


def rows_of(pipe: Any, run: Callable[[], object]) -> dict[str, list[list[int]]]:
    """By root, which rows of its calls are the prompt's while something runs."""
    recorder = Recorder()
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [], recorder, layout.describe()):
        run()
    return {
        root: [call.steered.int().tolist() for name, call in recorder.calls if name == root]
        for root in adapt(pipe).roots
    }


@pytest.mark.parametrize("family", ["sd", "flux", "lumina"])
def test_several_may_ask_whose_rows_they_are(family: str) -> None:
    """As learning does, and masks; they are told the same."""
    pipe, recorders = pipe_of(family), (Recorder(), Recorder())
    roots = adapt(pipe).roots
    with BatchLayout(adapt(pipe)) as layout:
        calls = layout.describe()
        with visit(roots, [], recorders[0], calls), visit(roots, [], recorders[1], calls):
            latents(pipe, family, BANANA, negative_prompt=BANANA)
    told = [[(root, call.steered.tolist()) for root, call in recorder.calls] for recorder in recorders]
    assert told[0] == told[1]
    assert [rows for root, rows in told[0] if root == "text_encoder"] == [[1], [0]]


def cut_encoder(family: str, order: str) -> Any:
    """A pipeline that reads long prompts in pieces, and knows brackets with a weight: such as "(banana:1.5)"."""
    plain = pipe_of(family)

    class InPieces(type(plain)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(prompt, *args, **kwargs).arguments
            listed = [prompt] if isinstance(prompt, str) else prompt
            negatives = arguments.get("negative_prompt") or ""
            negatives = [negatives] * len(listed) if isinstance(negatives, str) else negatives
            size = self.tokenizer.model_max_length
            streams = [[self.tokens(text) for text in texts] for texts in (listed, negatives)]
            count = max(1, -(-max(len(ids) for stream in streams for ids in stream) // (size - 2)))
            turns = [(role, i) for role in (0, 1) for i in range(count)]
            turns = sorted(turns, key=lambda turn: turn[::-1]) if order == "in turn" else turns
            made: list[list[torch.Tensor]] = [[], []]
            for role, i in turns if arguments.get("do_classifier_free_guidance", True) else turns[:count]:
                pieces = [ids[i * (size - 2) : (i + 1) * (size - 2)] for ids in streams[role]]
                begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
                padded = [[begin, *ids, *[end] * (size - 1 - len(ids))] for ids in pieces]
                made[role].append(self.text_encoder(torch.tensor(padded))[0])
            return tuple(torch.cat(parts, 1) if parts else None for parts in made)

        def tokens(self, text: str) -> list[int]:
            pieces = re.sub(r"\(([^()]*):[\d.]+\)", r"\1", text)
            return self.tokenizer(pieces, add_special_tokens=False).input_ids

    signature = inspect.signature(plain.encode_prompt)
    made = InPieces(**plain.components)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("order", ["one after the other", "in turn"])
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        (BANANA, LONG_NEGATIVE),
        (LONG, DOG),
        (LONG, ""),
        (LONG, LONG_NEGATIVE),
        (LONG, LONG),
        (BANANA, BANANA.title()),
        ("", ""),
        (f"a (banana:1.5) and {LONG}", f"(blurred:1.2) {LONG_NEGATIVE}"),
        (f"{LONG} and a {DOG}", f"{LONG} and a pig"),
    ],
)
def test_prompts_read_in_pieces(prompt: str, negative: str, order: str) -> None:
    """Rows of negative prompts are as they are without steering, all others are not."""
    pipe, concept = cut_encoder("sd", order), concept_of("sd", "text")
    base = pipe.encode_prompt(prompt, "cpu", 1, True, negative)
    with steer(pipe, {concept: 1.0}):
        made = pipe.encode_prompt(prompt, "cpu", 1, True, negative)
    pieces = base[0].shape[1] // pipe.tokenizer.model_max_length
    for before, after in zip(base[0].chunk(pieces, 1), made[0].chunk(pieces, 1), strict=True):
        assert not torch.equal(before, after)
    assert torch.equal(base[1], made[1])
    texts = rows_of(pipe, lambda: latents(pipe, "sd", prompt, negative_prompt=negative))["text_encoder"]
    assert texts == ([[1], [0]] * pieces if order == "in turn" else [[1]] * pieces + [[0]] * pieces)


@pytest.mark.parametrize("prompt", ["banana " * 60, "a cat, which the pipeline puts in other words"])
def test_pieces_that_cannot_be_told_are_refused(prompt: str) -> None:
    """Only where it matters: a concept of the denoiser does without."""
    pipe = cut_encoder("sd", "one after the other")
    if "cat" in prompt:
        pipe.tokens = lambda text: pipe.tokenizer("a pig", add_special_tokens=False).input_ids
    with steer(pipe, {concept_of("sd", "text"): 1.0}), pytest.raises(UnsupportedError, match="whose rows they are"):
        latents(pipe, "sd", prompt, negative_prompt=prompt)
    with steer(pipe, {concept_of("sd", "cross"): 1.0}):
        latents(pipe, "sd", prompt, negative_prompt=prompt)


@pytest.mark.parametrize("by", ["class", "object"])
@pytest.mark.parametrize("negative", [DOG, BANANA, ""])
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_prompts_that_are_put_in_other_words_and_handed_on(family: str, negative: str, by: str) -> None:
    plain = pipe_of(family)

    class Styled(type(plain)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
            return super().encode_prompt("a photograph of a cat", *args, **kwargs)

    pipe = (Styled if by == "class" else type(plain))(**plain.components)
    pipe.set_progress_bar_config(disable=True)
    if by == "object":
        own = pipe.encode_prompt
        pipe.encode_prompt = lambda prompt, *args, **kwargs: own("a photograph of a cat", *args, **kwargs)
    asked = {"negative_prompt": negative}
    rows = rows_of(pipe, lambda: latents(pipe, family, BANANA, **asked))
    assert rows == rows_of(plain, lambda: latents(plain, family, BANANA, **asked))
    assert rows["text_encoder"] == [[1], [0]]


@pytest.mark.parametrize("guidance", [True, False])
def test_a_loop_of_ones_own_is_guided_as_its_prompts_were_encoded(guidance: bool) -> None:
    """Whatever the pipeline's last call was; embeddings that somebody has changed are the prompt's without guidance."""
    pipe = pipe_of("sd")
    latents(pipe, "sd", BANANA)  # with guidance

    def run() -> None:
        embeds = pipe.encode_prompt(BANANA, "cpu", 1, guidance)[0]
        sample = torch.zeros(1, pipe.unet.config.in_channels, SIZE // 8, SIZE // 8)
        pipe.unet(sample, torch.tensor(500), encoder_hidden_states=embeds * 1.1)

    if guidance:
        with pytest.raises(UnsupportedError, match="of neither or of both"):
            rows_of(pipe, run)
    else:
        assert rows_of(pipe, run)["unet"] == [[1]]


@pytest.mark.parametrize("name", ["_encode_prompt", "helper"])
def test_pipelines_that_encode_by_other_ways(name: str) -> None:
    """An older method is watched as well; a text encoder that is called by anything else is refused."""
    plain = pipe_of("sd")

    class Older(type(plain)):  # type: ignore[misc]
        def __call__(self, prompt: Any, **options: Any) -> Any:
            encode = self._encode_prompt if name == "_encode_prompt" else self.helper
            made = encode(prompt, "cpu", 1, True, options.pop("negative_prompt"))
            positive, negative = made.chunk(2)[::-1]
            return super().__call__(prompt_embeds=positive, negative_prompt_embeds=negative, **options)

        def _encode_prompt(
            self,
            prompt: Any,
            device: Any,
            num_images_per_prompt: int,
            do_classifier_free_guidance: bool,
            negative_prompt: Any = None,
        ) -> Any:
            return self.helper(prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt)

        def helper(self, prompt: Any, device: Any, images: int, guided: bool, negative: Any) -> Any:
            ids = [
                self.tokenizer(text, padding="max_length", return_tensors="pt").input_ids for text in (prompt, negative)
            ]
            positive, other = (self.text_encoder(each)[0] for each in ids)
            return torch.cat([other, positive])

    pipe = Older(**plain.components)
    pipe.set_progress_bar_config(disable=True)

    def run() -> Any:
        return pipe(
            BANANA, negative_prompt=DOG, height=SIZE, width=SIZE, num_inference_steps=STEPS, output_type="latent"
        )

    if name == "helper":
        with pytest.raises(UnsupportedError, match="was called while Older draws, but not by its encode_prompt"):
            rows_of(pipe, run)
        return
    assert rows_of(pipe, run) == {"text_encoder": [[1], [0]], "unet": [[0, 1]] * STEPS}


@pytest.mark.parametrize("family", TOLD)
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [("A Banana", "a banana"), (f"{LONG} {LONG} a pig", f"{LONG} {LONG} a dog"), (BANANA, BANANA)],
)
def test_prompts_that_read_like_their_negative_prompts(family: str, prompt: str, negative: str) -> None:
    """Equal tokens, equal up to where the tokenizer cuts off, equal texts: the order in which they are read tells."""
    pipe = pipe_of(family)
    rows = rows_of(pipe, lambda: latents(pipe, family, prompt, negative_prompt=negative))
    assert rows.pop(adapt(pipe).family.denoiser) == [[int(on) for on in line[::2]] for line, _ in CALLS[family]] * STEPS
    assert all(texts == [[1], [0]] for texts in rows.values())


def encode(family: str, prompt: str) -> Any:
    """Encode a prompt alone, as users do."""
    pipe = pipe_of(family)
    named = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    known = inspect.signature(type(pipe).encode_prompt).parameters
    named |= dict.fromkeys(("prompt_2", "prompt_3"))
    return pipe.encode_prompt([prompt], **{name: value for name, value in named.items() if name in known})


@pytest.mark.parametrize(
    ("prompt", "negative"), [("a red dog", "a red"), ("a red", "a red dog"), ("a red dog", "a cat")]
)
def test_negative_prompts_that_are_read_first(prompt: str, negative: str) -> None:
    """They are known by their words; one that the prompt begins with might be a piece of it."""
    plain = pipe_of("sd")

    class Backwards(type(plain)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, device: Any, images: Any, guided: Any, negative_prompt: Any = None) -> Any:
            options = {"padding": "max_length", "return_tensors": "pt"}
            ids = [self.tokenizer([text], **options).input_ids for text in (negative_prompt, prompt)]
            return tuple(self.text_encoder(each)[0] for each in ids)[::-1]

    pipe, texts = Backwards(**plain.components), []

    def run() -> None:
        texts.append(pipe.encode_prompt(prompt, "cpu", 1, True, negative_prompt=negative))

    if not prompt.startswith(negative):
        assert rows_of(pipe, run)["text_encoder"] == [[0], [1]]
    else:
        with pytest.raises(UnsupportedError, match="go on with both the prompt and the negative prompt"):
            rows_of(pipe, run)


@pytest.mark.parametrize("prompts", [[BANANA], [BANANA, DOG]])
def test_prompts_and_negative_prompts_read_in_one_call_are_refused(prompts: list[str]) -> None:
    plain = pipe_of("sd")

    class AtOnce(type(plain)):  # type: ignore[misc]
        def encode_prompt(self, prompt: Any, device: Any, images: Any, guided: Any, negative_prompt: Any = None) -> Any:
            options = {"padding": "max_length", "return_tensors": "pt"}
            return self.text_encoder(self.tokenizer([*prompt, *negative_prompt], **options).input_ids)[0].chunk(2)

    pipe = AtOnce(**plain.components)
    with pytest.raises(UnsupportedError, match="tokens that go on with neither"):
        rows_of(pipe, lambda: pipe.encode_prompt(prompts, "cpu", 1, True, negative_prompt=prompts))


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_call_that_somebody_has_wrapped(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = type(pipe_of(family)).__call__
    monkeypatch.setattr(type(pipe_of(family)), "__call__", lambda *args, **kwargs: own(*args, **kwargs))
    rows = rows_of(pipe_of(family), lambda: latents(pipe_of(family), family, BANANA, negative_prompt=BANANA))
    assert rows["text_encoder"] == [[1], [0]]
    assert rows[adapt(pipe_of(family)).family.denoiser] == [line[::2] for line, _ in CALLS[family]] * STEPS


@cache
def attentive() -> Any:
    """Stable Diffusion with self-attention guidance, which takes schedulers of whole timesteps."""
    from diffusers import DDIMScheduler

    pipe = other("StableDiffusionSAGPipeline", "sd")
    pipe.scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    return pipe


@pytest.mark.parametrize("negative", [DOG, BANANA])
@pytest.mark.parametrize(("guidance", "rows"), [(3.0, [[0, 1], [0]]), (1.0, [[1], [1]])])
def test_self_attention_guidance(guidance: float, rows: list[list[int]], negative: str) -> None:
    """It calls the denoiser once more, for the negative prompt, or without guidance for the prompt."""
    pipe, size = attentive(), {"height": 2 * SIZE, "width": 2 * SIZE}
    options = {"negative_prompt": negative, "guidance_scale": guidance, "sag_scale": 0.7, **size}
    found = rows_of(pipe, lambda: latents(pipe, "sd", BANANA, **options))
    assert found["unet"] == rows * STEPS
    assert found["text_encoder"] == [[1], [0]][: 1 + (guidance > 1)]


@pytest.mark.parametrize("family", ["sd", "flux", "zimage"])
def test_after_a_generation_that_broke_off_the_next_is_a_new_one(family: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, "text")
    expected = {}

    def breaking(*_: Any) -> Any:
        raise KeyboardInterrupt

    for broken in (False, True):
        with steer(pipe, {concept: 1.0}) as steering:
            if broken:
                with pytest.raises(KeyboardInterrupt):
                    latents(pipe, family, [BANANA, DOG], (0, 1), callback_on_step_end=breaking)
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                expected[broken] = latents(pipe, family, DOG)
            assert steering._layout.request.texts == [DOG]
    assert torch.equal(expected[False], expected[True])
    assert not torch.equal(expected[True], base_of(family))


def test_strengths_by_prompt_are_as_many_as_the_text_encoder_reads() -> None:
    """Of one prompt that is encoded alone, in a callback or before, nobody knows which strength is its own."""
    with steer(pipe_of("sd"), {concept_of("sd", "text"): [1.0, 0.5]}):
        latents(pipe_of("sd"), "sd", [BANANA, DOG], (0, 1))
        with pytest.raises(DSASError, match="is given for 2 prompts, but the call has 1"):
            encode("sd", DOG)


def test_a_generation_within_another_is_refused() -> None:
    pipe = pipe_of("sd")

    def nested(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> Any:
        latents(pipeline, "sd", DOG, num_inference_steps=1)
        return kwargs

    with (
        steer(pipe, {concept_of("sd", "cross"): 1.0}),
        pytest.raises(UnsupportedError, match="a callback called StableDiffusionPipeline while it draws"),
    ):
        latents(pipe, "sd", BANANA, callback_on_step_end=nested)


def test_another_pipeline_with_the_same_text_encoder() -> None:
    """Between generations it is told of, within one it is refused: nobody knows what it reads."""
    pipe, concept = pipe_of("sd"), concept_of("sd", "text")
    second = build("sd", Path(mkdtemp()))
    second = type(pipe)(**{**second.components, "text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer})
    second.set_progress_bar_config(disable=True)

    def inner(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> Any:
        latents(second, "sd", DOG, num_inference_steps=1)
        return kwargs

    with steer(pipe, {concept: 1.0}):
        with pytest.raises(UnsupportedError, match="not by its encode_prompt"):
            latents(pipe, "sd", BANANA, callback_on_step_end=inner)
        with pytest.warns(UserWarning, match="the text_encoder was called by something else than StableDiff"):
            latents(second, "sd", DOG, num_inference_steps=1)


@pytest.mark.parametrize("family", TOLD)
def test_embeddings_of_a_while_ago(family: str) -> None:
    """Of two prompts; one other has been encoded since."""
    pipe, images = pipe_of(family), 2 if family == "zimage" else 1  # others count pictures where they encode
    recorder = Recorder()
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [], recorder, layout.describe()):
        given = ready_made(family)
        encode(family, "a pig")
        options = {GUIDED.get(family, "guidance_scale"): 3.0, "output_type": "latent", "num_images_per_prompt": images}
        options |= {"use_resolution_binning": False, "negative_prompt": None} if family in ("pixart", "sana") else {}
        pipe(height=SIZE, width=SIZE, num_inference_steps=1, **options, **given)
    calls = [call for root, call in recorder.calls if root == adapt(pipe).family.denoiser]
    expected = [
        ([on for on in rows for _ in range(images)], [i for i in owners for _ in range(images)])
        for rows, owners in CALLS[family][: 1 if family == "flux" else None]  # which is given no negative one
    ]
    assert [(call.steered.tolist(), call.prompts.tolist()) for call in calls] == expected
    assert layout.request.embeddings == "encoded here"


def test_pipelines_whose_encode_prompt_takes_no_prompt_are_refused() -> None:
    class Edits(type(pipe_of("sd"))):  # type: ignore[misc]
        def encode_prompt(self, device: Any, editing_prompt: Any, negative_prompt: Any) -> Any:
            raise AssertionError

    with pytest.raises(DSASError, match=r"Edits\.encode_prompt takes no prompt"):
        steer(Edits(**pipe_of("sd").components), {concept_of("sd", "cross"): 1.0})


def test_a_pipeline_that_stacks_its_branches_the_other_way_round() -> None:
    """Embeddings tell, where they differ."""
    plain = pipe_of("sd")

    class Reversed(type(plain)):  # type: ignore[misc]
        def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
            return super().encode_prompt(*args, **kwargs)

    pipe = Reversed(**plain.components)
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [], recorder := Recorder(), layout.describe()):
        positive, negative = pipe.encode_prompt(BANANA, "cpu", 1, True, DOG)
        for both in ([negative, positive], [positive, negative], [positive], [negative]):
            pipe.unet(torch.randn(len(both), 4, 16, 16), torch.tensor(500), torch.cat(both))
        with pytest.raises(UnsupportedError, match="that are of neither or of both"):
            pipe.unet(torch.randn(1, 4, 16, 16), torch.tensor(500), positive + 1)
    rows = [call.steered.tolist() for root, call in recorder.calls if root == "unet"]
    assert rows == [[0, 1], [1, 0], [1], [0]]
