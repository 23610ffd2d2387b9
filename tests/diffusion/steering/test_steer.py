"""Steering a pipeline: the identities, for every probe form, group of sites and pipeline; then the single promises."""

from __future__ import annotations

import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dsas_core import Concept, DSASError, Site, visit
from dsas_core.model.sites import modules
from dsas_diffusion import Schedule, find_sites, steer
from dsas_diffusion.pipelines.adapter import adapt
from tests.fixtures.checks import differ, same
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import BANANA, DOG, STEPS, bases, build_flow_pipe, latents
from tests.fixtures.visitors import Bare, Recorder, seen_at

S = 0.7
MATRIX = list(itertools.product(("flow", "ddim"), ("text", "cross", "self", "block"), ("linear", "pooled", "product")))
#: the whole of a denoiser: what a call of it returns
DENOISER = Site("unet", layout="first")


@dataclass
class Case:
    pipe: Any
    concept: Concept

    def latents(self, prompts: Any, seeds: Sequence[int] = (0,), **options: Any) -> torch.Tensor:
        """In two steps, one in each timestep bin."""
        return latents(self.pipe, prompts, seeds, **{"num_inference_steps": 2, **options})


@pytest.fixture(scope="module", params=MATRIX, ids=lambda parameters: "-".join(parameters))
def case(request: pytest.FixtureRequest, tiny_pipe: Any, ddim_pipe: Any) -> Case:
    """One cell of the matrix; the second pipeline's concepts have two timestep bins."""
    which, group, form = request.param
    pipe, edges = (tiny_pipe, ()) if which == "flow" else (ddim_pipe, (500.0,))
    seen = seen_at(pipe, find_sites(pipe, group))
    return Case(pipe, random_concept(seen, form=form, edges=edges, unit=0.5, base=bases(pipe)))


@contextmanager
def vanilla(pipe: Any, concept: Concept, strength: float) -> Iterator[None]:
    """The map alone, by hooks of the test's own: conditional rows, and in texts every position but the first."""
    clock = {"unet": 0.0, "text_encoder": 0.0}
    silence = pipe.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    conditional = {"text": True}

    def look_at_clock(module: nn.Module, args: tuple[Any, ...]) -> None:
        clock["unet"] = float(args[1])

    def look_at_text(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        conditional["text"] = not torch.equal(ids, silence)

    def moved(item: Any) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            bin_ = sum(clock[item.site.root] >= edge for edge in concept.edges)
            transform = item.maps[bin_]
            shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
            change = (transform.slope.view(shape) - 1) * x + transform.shift.view(shape)
            kept = torch.zeros_like(x)
            if item.site.root == "unet":
                kept[len(x) // 2 if len(x) > 1 else 0 :] = 1
            elif conditional["text"]:
                kept[:, 1:] = 1
            new = x + kept * strength * concept.unit * change
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    handles = [
        pipe.unet.register_forward_pre_hook(look_at_clock),
        pipe.text_encoder.register_forward_pre_hook(look_at_text, with_kwargs=True),
    ]
    known = modules(adapt(pipe).roots)
    handles += [known[item.site.path].register_forward_hook(moved(item)) for item in concept.interventions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- identities -----------------------------------------------------------------------------------------------------


def test_strength_zero_gate_off_and_detach_are_exact_and_signs_differ(case: Case) -> None:
    base, bare = case.latents(BANANA), [Bare.of(case.pipe.unet), Bare.of(case.pipe.text_encoder)]
    with steer(case.pipe, {case.concept: 0.0}) as steering:
        assert torch.equal(case.latents(BANANA), base)
        assert steering.fired == sorted(str(site) for site in case.concept.sites)
        made = [base]
        for strength in (S, -S):
            steering.strengths["random"] = strength
            made.append(case.latents(BANANA))
        assert all(differ(a, b) for a, b in itertools.combinations(made, 2))
    with steer(case.pipe, {case.concept: S}, gate="off"):
        assert torch.equal(case.latents(BANANA), base)
    assert torch.equal(case.latents(BANANA), base)
    assert [Bare.of(case.pipe.unet), Bare.of(case.pipe.text_encoder)] == bare
    assert "encode_prompt" not in vars(case.pipe)


def test_gate_on_is_the_vanilla_method(case: Case) -> None:
    with steer(case.pipe, {case.concept: S}, gate="on"):
        made = case.latents(BANANA)
    with vanilla(case.pipe, case.concept, S):
        expected = case.latents(BANANA)
    assert same(made, expected)
    with steer(case.pipe, {case.concept: S}):
        assert differ(case.latents(BANANA), expected)


def test_batch_of_two_equals_two_singles_whatever_their_strengths(case: Case) -> None:
    strengths = (S, -2 * S)
    with steer(case.pipe, {case.concept: S}) as steering:
        alike = case.latents([BANANA, DOG], seeds=(1, 2))
        steering.strengths["random"] = strengths
        apart = case.latents([BANANA, DOG], seeds=(1, 2))
        for i, (prompt, seed) in enumerate(((BANANA, 1), (DOG, 2))):
            steering.strengths["random"] = S
            assert same(alike[i : i + 1], case.latents(prompt, seeds=(seed,)))
            steering.strengths["random"] = strengths[i]
            assert same(apart[i : i + 1], case.latents(prompt, seeds=(seed,)))
    assert differ(alike[1], apart[1])


def test_unconditional_rows_are_untouched_within_a_call(case: Case) -> None:
    recorder = Recorder()
    with visit({"unet": case.pipe.unet}, [DENOISER], recorder):
        case.latents([BANANA, DOG], seeds=(1, 2), num_inference_steps=1)
        for branch in ("conditional", "both"):
            with steer(case.pipe, {case.concept: S}, branch=branch):
                case.latents([BANANA, DOG], seeds=(1, 2), num_inference_steps=1)
    base, conditional, both = recorder.seen[DENOISER]
    assert torch.equal(conditional[:2], base[:2])
    assert differ(conditional[2], base[2])
    assert differ(conditional[3], base[3])
    assert same(both[2:], conditional[2:])
    assert differ(both[0], base[0])


def test_each_picture_of_a_prompt_has_its_strength(case: Case) -> None:
    options = {"seeds": (1, 2, 3, 4), "num_images_per_prompt": 2}
    base = case.latents([BANANA, DOG], **options)
    with steer(case.pipe, {case.concept: [0.0, S]}) as steering:
        made = case.latents([BANANA, DOG], **options)
        steering.strengths["random"] = S
        single = case.latents(DOG, seeds=(4,))
    assert torch.equal(made[:2], base[:2])
    assert differ(made[2], base[2])
    assert same(made[3:], single)


# ---- single promises ------------------------------------------------------------------------------------------------


def concept_of(pipe: Any, group: str = "cross", **fields: Any) -> Concept:
    return random_concept(seen_at(pipe, find_sites(pipe, group)), unit=0.5, **fields)


@pytest.mark.parametrize("group", ["text", "cross"])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_every_row_is_conditional(ddim_pipe: Any, group: str, guidance: float) -> None:
    concept = concept_of(ddim_pipe, group)
    with steer(ddim_pipe, {concept: S}, gate="on"):
        made = latents(ddim_pipe, BANANA, guidance_scale=guidance)
    with vanilla(ddim_pipe, concept, S):
        expected = latents(ddim_pipe, BANANA, guidance_scale=guidance)
    assert same(made, expected)
    assert differ(made, latents(ddim_pipe, BANANA, guidance_scale=guidance))


@pytest.mark.parametrize("group", ["text", "cross"])
@pytest.mark.parametrize(
    ("prompts", "negative"), [(BANANA, "a dog"), ([BANANA, DOG], ["a dog", "a cat at night"])], ids=["one", "two"]
)
def test_a_negative_prompt_is_left_alone(tiny_pipe: Any, group: str, prompts: Any, negative: Any) -> None:
    count = 1 if isinstance(prompts, str) else len(prompts)
    options = {"seeds": range(count), "num_inference_steps": 1, "negative_prompt": negative}
    concept, recorder = concept_of(tiny_pipe, group), Recorder()
    with visit({"unet": tiny_pipe.unet}, [DENOISER], recorder):
        latents(tiny_pipe, prompts, **options)
        with steer(tiny_pipe, {concept: S}):
            latents(tiny_pipe, prompts, **options)
    base, made = recorder.seen[DENOISER]
    assert torch.equal(made[:count], base[:count])
    assert all(differ(made[i], base[i]) for i in range(count, 2 * count))


def test_a_subclass_may_hand_on_the_arguments_of_encode_prompt(tiny_pipe: Any) -> None:
    """Prompts are told from negative prompts by the arguments that the class above it names."""

    class Forwarding(type(tiny_pipe)):  # type: ignore[misc]
        def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
            return super().encode_prompt(*args, **kwargs)

    concept, negative = concept_of(tiny_pipe, "text"), "a dog"
    with steer(tiny_pipe, {concept: S}):
        expected = latents(tiny_pipe, BANANA, negative_prompt=negative)
    pipe = Forwarding(**tiny_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    with steer(pipe, {concept: S}):
        assert torch.equal(latents(pipe, BANANA, negative_prompt=negative), expected)


@pytest.mark.parametrize("names", [("prompt_embeds", "negative_prompt_embeds"), ("prompt_embeds",)])
def test_given_embeddings_warn_where_text_is_steered(names: tuple[str, ...], tiny_pipe: Any) -> None:
    """Also where the text encoder runs for the negative prompt."""
    given = dict(zip(names, tiny_pipe.encode_prompt(BANANA, "cpu", 1, True), strict=False))
    base = latents(tiny_pipe, None, **given)
    text, cross = concept_of(tiny_pipe, "text"), concept_of(tiny_pipe, "cross")
    with steer(tiny_pipe, {text: S}), pytest.warns(UserWarning, match="prompt_embeds were given, so the text encoder"):
        assert torch.equal(latents(tiny_pipe, None, **given), base)
    with steer(tiny_pipe, {cross: S}), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert differ(latents(tiny_pipe, None, **given), base)


def test_embeddings_encoded_inside_the_block_are_steered_without_a_warning(tiny_pipe: Any) -> None:
    with steer(tiny_pipe, {concept_of(tiny_pipe, "text"): S}), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        expected = latents(tiny_pipe, BANANA)
        positive, negative = tiny_pipe.encode_prompt(BANANA, "cpu", 1, True)
        made = latents(tiny_pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert same(made, expected)  # with gradients each concept is computed by itself


def test_direct_calls_of_a_text_encoder_count_as_prompts(tiny_pipe: Any) -> None:
    """As Compel and its like do."""
    concept = concept_of(tiny_pipe, "text")

    def read(text: str) -> torch.Tensor:
        ids = tiny_pipe.tokenizer(text, padding="max_length", return_tensors="pt", truncation=True).input_ids
        return tiny_pipe.text_encoder(ids)[0]

    negative = read("a cat")
    with steer(tiny_pipe, {concept: S}):
        expected = latents(tiny_pipe, BANANA, negative_prompt="a cat")
        positive = read(BANANA)
        with pytest.warns(UserWarning, match=r"only if .* inside the steer\(\) block.*encode negative prompts outside"):
            made = latents(tiny_pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)
        assert differ(read("a cat"), negative)  # also behind a generation whose negative prompt it was
    assert same(made, expected)  # with gradients each concept is computed by itself
    with steer(tiny_pipe, {concept_of(tiny_pipe, "cross"): S}), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read(BANANA)
        latents(tiny_pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)


def test_a_site_that_is_never_reached_warns(tmp_path: Any) -> None:
    pipe = build_flow_pipe(tmp_path)
    pipe.unet.mid_block.unused = nn.Identity()
    with (
        steer(pipe, {random_concept({Site("unet.mid_block.unused"): 4}): 1.0}),
        pytest.warns(
            UserWarning, match=r"sites were not reached, so nothing was steered there: unet\.mid_block\.unused"
        ),
    ):
        latents(pipe, BANANA)


def test_steering_twice_raises_and_leaves_the_first_alone(tiny_pipe: Any) -> None:
    concept = concept_of(tiny_pipe)
    with steer(tiny_pipe, {concept: S}):
        made = latents(tiny_pipe, BANANA)
        with pytest.raises(DSASError, match=r"is steering this .*dsas\.steered\(pipe\).*dsas\.detach\(pipe\)"):
            steer(tiny_pipe, {concept: S})
        assert torch.equal(latents(tiny_pipe, BANANA), made)
    with steer(tiny_pipe, {concept: S}):
        assert torch.equal(latents(tiny_pipe, BANANA), made)


def test_a_failed_attachment_leaves_nothing(tiny_pipe: Any) -> None:
    nowhere = random_concept({Site("unet.nowhere"): 4})
    with pytest.raises(DSASError, match=r"no module at unet\.nowhere"):
        steer(tiny_pipe, {nowhere: 1.0})
    assert Bare.of(tiny_pipe.unet).hooks == 0
    assert "encode_prompt" not in vars(tiny_pipe)


def test_detach_can_be_repeated(tiny_pipe: Any) -> None:
    base = latents(tiny_pipe, BANANA)
    steering = steer(tiny_pipe, {concept_of(tiny_pipe): S})
    assert differ(latents(tiny_pipe, BANANA), base)
    steering.detach()
    steering.detach()
    assert torch.equal(latents(tiny_pipe, BANANA), base)
    assert steering.fired == []


@pytest.mark.parametrize("attach", ["hooks", "processor"])
def test_a_detached_steering_is_freed_with_its_last_reference(tiny_pipe: Any, attach: str) -> None:
    """Its trace may be large, and must not wait for the garbage collector."""
    concept = concept_of(tiny_pipe)
    gc.disable()
    try:
        with steer(tiny_pipe, {concept: 1.0}, attach=attach, trace=True) as steering:
            latents(tiny_pipe, BANANA)
        trace, layout = weakref.ref(steering.trace), weakref.ref(steering._layout)
        del steering
        assert trace() is None
        assert layout() is None, "it holds the pipeline"
    finally:
        gc.enable()


def timesteps(pipe: Any) -> list[float]:
    pipe.scheduler.set_timesteps(STEPS)
    return [float(t) for t in pipe.scheduler.timesteps]


@pytest.mark.parametrize("which", ["flow", "ddim"])
def test_strengths_move_between_steps(which: str, tiny_pipe: Any, ddim_pipe: Any) -> None:
    pipe = tiny_pipe if which == "flow" else ddim_pipe
    concept, (first, second, *_) = concept_of(pipe), timesteps(pipe)
    with steer(pipe, {concept: 0.0}) as steering:

        def begin_steering(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            steering.strengths["random"] = S
            return kwargs

        moved = latents(pipe, BANANA, callback_on_step_end=begin_steering)
    with steer(pipe, {concept: S}, schedule=Schedule([(first, 0.0), (second, 1.0)])):
        scheduled = latents(pipe, BANANA)
    assert same(moved, scheduled)
    with steer(pipe, {concept: S}):
        assert differ(latents(pipe, BANANA), scheduled)
    assert differ(latents(pipe, BANANA), scheduled)


def test_a_schedule_of_zero_is_the_base_model(tiny_pipe: Any) -> None:
    concept, base = concept_of(tiny_pipe), latents(tiny_pipe, BANANA)
    for schedule in (Schedule([(500, 0.0)]), {"random": Schedule([(0, 0.0), (1000, 0.0)])}):
        with steer(tiny_pipe, {concept: S}, schedule=schedule):
            assert torch.equal(latents(tiny_pipe, BANANA), base)


def test_each_timestep_bin_uses_its_own_parameters(ddim_pipe: Any) -> None:
    """A bin of weight 0 does what a schedule does that is 0 there."""
    both = concept_of(ddim_pipe, edges=(500.0,))
    alike = [replace(item, probes=item.probes[:1] * 2, maps=item.maps[:1] * 2) for item in both.interventions]
    always = replace(both, interventions=tuple(alike))
    noisy = replace(both, interventions=tuple(replace(item, weights=(0.0, 1.0)) for item in alike))
    assert [t >= 500 for t in timesteps(ddim_pipe)] == [True, False, False]
    with steer(ddim_pipe, {noisy: S}):
        made = latents(ddim_pipe, BANANA)
    with steer(ddim_pipe, {always: S}, schedule=Schedule.between(1000, 500)):
        assert same(latents(ddim_pipe, BANANA), made)
    with steer(ddim_pipe, {always: S}):
        assert differ(latents(ddim_pipe, BANANA), made)


def test_half_precision_pipelines_are_steered_in_their_dtype(tiny_pipe: Any, tmp_path: Any) -> None:
    concept = concept_of(tiny_pipe)
    with steer(tiny_pipe, {concept: S}):
        precise = latents(tiny_pipe, BANANA)
    pipe = build_flow_pipe(tmp_path)
    pipe.tokenizer = tiny_pipe.tokenizer
    pipe.to(torch.bfloat16)
    base = latents(pipe, BANANA)
    with steer(pipe, {concept: 0.0}) as steering:
        assert torch.equal(latents(pipe, BANANA), base)
        steering.strengths["random"] = S
        made = latents(pipe, BANANA)
    assert made.dtype == torch.bfloat16
    assert differ(made.float(), base.float())
    assert float((made.float() - precise).abs().mean()) < 0.3 * float((base.float() - precise).abs().mean())


def test_two_concepts_are_steered_together(tiny_pipe: Any) -> None:
    first, second = concept_of(tiny_pipe, name="first", seed=1), concept_of(tiny_pipe, "text", name="second", seed=2)
    made = {}
    for strengths in ((S, 0.0), (0.0, S), (S, S)):
        with steer(tiny_pipe, {first: strengths[0], second: strengths[1]}):
            made[strengths] = latents(tiny_pipe, BANANA)
    with steer(tiny_pipe, {first: S}):
        assert torch.equal(latents(tiny_pipe, BANANA), made[S, 0.0])
    assert all(differ(a, b) for a, b in itertools.combinations(made.values(), 2))


@pytest.mark.parametrize("positions", ["all", "words"])
def test_padding_is_steered_or_not_as_the_concept_was_learned(tiny_pipe: Any, positions: str) -> None:
    last = find_sites(tiny_pipe, "text")[-1]
    concept = random_concept(seen_at(tiny_pipe, [last]), provenance={"positions": positions})
    base, _ = tiny_pipe.encode_prompt("a banana", "cpu", 1, False)
    with steer(tiny_pipe, {concept: S}, gate="on"):
        made, _ = tiny_pipe.encode_prompt("a banana", "cpu", 1, False)
    moved = (made != base).any(-1)[0].tolist()
    words = [False, True, True, True]  # start, a, banana, end
    assert moved == words + [positions == "all"] * (len(moved) - 4)


def test_concepts_that_read_different_positions_do_not_mix(tiny_pipe: Any) -> None:
    concepts = {concept_of(tiny_pipe, name=name, provenance={"positions": name}): S for name in ("all", "words")}
    with pytest.raises(DSASError, match="cannot be steered together"):
        steer(tiny_pipe, concepts)


def test_concepts_are_loaded_from_their_folders(tiny_pipe: Any, tmp_path: Any) -> None:
    concept = concept_of(tiny_pipe, base=bases(tiny_pipe))
    folder = concept.save_pretrained(tmp_path / "it")
    with steer(tiny_pipe, {concept: S}):
        expected = latents(tiny_pipe, BANANA)
    for name in (folder, str(folder)):
        with steer(tiny_pipe, {name: S}):
            assert torch.equal(latents(tiny_pipe, BANANA), expected)
    with pytest.raises(DSASError, match="one concept is given twice"):
        steer(tiny_pipe, {folder: S, concept: S})


def test_a_concept_from_another_architecture_is_refused_unless_forced(tiny_pipe: Any, ddim_pipe: Any) -> None:
    concept = concept_of(tiny_pipe, base=bases(tiny_pipe))
    with pytest.raises(DSASError, match="was learned on another unet"):
        steer(ddim_pipe, {concept: S})
    assert "encode_prompt" not in vars(ddim_pipe)
    steer(ddim_pipe, {concept: S}, force=True).detach()


@pytest.mark.parametrize(
    ("strength", "settings", "message"),
    [
        (float("nan"), {}, "strength of 'random': expected a finite number"),
        ([1.0, float("inf")], {}, "strength of 'random': expected a finite number"),
        (1.0, {"gate": "sometimes"}, "gate 'sometimes'"),
        (1.0, {"branch": "some"}, "branch 'some': expected conditional or unconditional or both"),
        (1.0, {"schedule": {"other": Schedule([(0, 1.0)])}}, "a schedule for 'other', but attached are random"),
    ],
)
def test_bad_requests(tiny_pipe: Any, strength: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        steer(tiny_pipe, {concept_of(tiny_pipe): strength}, **settings)
    assert Bare.of(tiny_pipe.unet).hooks == 0
    assert "encode_prompt" not in vars(tiny_pipe)


def test_the_former_name_of_branch_is_still_taken(tiny_pipe: Any) -> None:
    concept, pictures = concept_of(tiny_pipe), []
    with steer(tiny_pipe, {concept: S}, branch="both"):
        pictures.append(latents(tiny_pipe, BANANA))
    with pytest.warns(DeprecationWarning, match="branch="), steer(tiny_pipe, {concept: S}, rows="both"):
        pictures.append(latents(tiny_pipe, BANANA))
    assert same(*pictures)


def test_no_concept_and_two_of_one_name(tiny_pipe: Any) -> None:
    with pytest.raises(DSASError, match=r"expected \{concept: strength\}, found"):
        steer(tiny_pipe, {})
    with pytest.raises(DSASError, match="two concepts are named 'random'"):
        steer(tiny_pipe, {concept_of(tiny_pipe, seed=1): S, concept_of(tiny_pipe, seed=2): S})


def test_strengths_for_other_prompts_than_were_given(tiny_pipe: Any) -> None:
    with (
        steer(tiny_pipe, {concept_of(tiny_pipe): [S, S]}),
        pytest.raises(DSASError, match="is given for 2 prompts, but the call has 3"),
    ):
        latents(tiny_pipe, [BANANA, DOG, DOG], seeds=(1, 2, 3))


@pytest.mark.parametrize(
    ("pipe", "message"),
    [
        (SimpleNamespace(), "has neither unet nor transformer"),
        (SimpleNamespace(unet=nn.Linear(2, 2)), "Linear is not a family that is known; known are UNet2DConditionModel"),
    ],
)
def test_what_is_no_known_pipeline(pipe: Any, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        steer(pipe, {random_concept({Site("unet.mid"): 4}): S})


# ---- the trace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["conditional", "both"])
def test_the_trace_draws_where_each_picture_was_steered(tiny_pipe: Any, branch: str) -> None:
    with steer(tiny_pipe, {concept_of(tiny_pipe): S}, trace=True, branch=branch) as steering:
        pictures = latents(tiny_pipe, [BANANA, DOG], seeds=(1, 2), output_type="pil")
        trace = steering.trace
        assert trace is not None
        sites = {str(site) for site in steering.sites}
        assert {str(record.site) for record in trace.records} == sites
        assert len(trace.records) == STEPS * len(sites)
        assert {record.timestep for record in trace.records} == set(timesteps(tiny_pipe))
        both = [trace.heat("random", picture.size, image=i) for i, picture in enumerate(pictures)]
        assert trace.heatmap("random", pictures[1], image=1).size == pictures[1].size == (32, 32)
        latents(tiny_pipe, DOG, seeds=(2,))
        assert len(trace.records) == STEPS * len(sites), "a new generation begins a new trace"
        alone = trace.heat("random", (32, 32))
    for heat in both:
        assert heat.shape == (32, 32)
        assert heat.min() >= 0
        assert 0 < heat.max() <= 1
        assert heat.std() > 0
    assert same(torch.from_numpy(both[1]), torch.from_numpy(alone))
    assert abs(both[0] - alone).max() > 1e-4


def test_heat_has_the_size_that_is_asked_for(tiny_pipe: Any) -> None:
    with steer(tiny_pipe, {concept_of(tiny_pipe): S}, trace=True) as steering:
        tiny_pipe(BANANA, height=32, width=64, num_inference_steps=2, output_type="latent")
        assert steering.trace is not None
        assert steering.trace.heat("random", (64, 32)).shape == (32, 64)
        one = steering.trace.heat("random", (64, 32), site=str(steering.sites[0]))
        assert one.shape == (32, 64)


def test_no_heat_says_what_was_recorded(tiny_pipe: Any) -> None:
    with steer(tiny_pipe, {concept_of(tiny_pipe, "text"): S}, trace=True) as steering:
        trace = steering.trace
        assert trace is not None
        with pytest.raises(
            DSASError, match=r"no heat for 'random', picture 0: recorded are nothing: call the pipeline"
        ):
            trace.heat("random", (32, 32))
        latents(tiny_pipe, BANANA)
        with pytest.raises(
            DSASError, match=r"recorded are random at text_encoder\.encoder\.layers\.0, .*text sites have no patches"
        ):
            trace.heat("random", (32, 32))
        assert 0 < trace.mean_h("random") < 1
    with steer(tiny_pipe, {concept_of(tiny_pipe): S}, trace=True) as steering:
        latents(tiny_pipe, BANANA)
        for wrong in ({"image": 1}, {"site": "unet.nowhere"}, {"root": "text_encoder"}):
            with pytest.raises(DSASError, match="no heat for 'random'"):
                steering.trace.heat("random", (32, 32), **wrong)
        with pytest.raises(DSASError, match="no concept 'other' is traced; there is random"):
            steering.trace.heat("other", (32, 32))
