"""Gradients through steered models: those of plain hooks, whatever was called before the backward pass."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dsas_core import Call, Concept, DSASError, Site, Steering, llm
from dsas_core.maps import Map
from dsas_core.probes import LatchProbe, LinearProbe, PrefixProbe, RunningProbe
from tests.fixtures.concepts import Turn, random_concept
from tests.fixtures.language_models import IDS, condition_latch, text_probe, tiny
from tests.fixtures.models import Counting, build_ddim_pipe

STATEFUL: dict[str, Callable[[LinearProbe], RunningProbe]] = {
    "prefix": PrefixProbe,
    "latch": LatchProbe,
    "text": text_probe,
    "condition": condition_latch,
}
PROBES = ("linear", "pooled", "product", "constant", "rectified", *STATEFUL)
MAPS = ("additive", "affine", "support", "mean-shift", "turn", "two-way")
HOW = ("plain", "checkpoint", "reentrant checkpoint")
PAIRS = [(probe, kind) for probe in PROBES for kind in MAPS]
#: of the matrix the fast part: each probe and each map once
FAST = [
    *zip(
        PROBES,
        ("additive", "support", "affine", "mean-shift", "two-way", "turn", "affine", "affine", "affine"),
        strict=True,
    )
]


def matrix(pairs: Sequence[tuple[str, str]], hows: Sequence[str]) -> list[Any]:
    """Probes and maps, and what is checkpointed; what is not among the fast is slow."""
    return [pytest.param(*pair, how, marks=[] if pair in FAST else pytest.mark.slow) for pair in pairs for how in hows]


@cache
def llama() -> Any:
    return copy.deepcopy(tiny("llama")).double()


@cache
def eager() -> Any:
    model = copy.deepcopy(llama())
    model.set_attn_implementation("eager")  # the fused attention has no second derivatives
    return model


@cache
def unet() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return build_ddim_pipe(Path(folder)).unet.double()


def concept_of(sites: Sequence[Site], width: int, probe: str, kind: str, edges: Sequence[float] = ()) -> Concept:
    form = "linear" if probe in STATEFUL else probe
    concept = random_concept(
        dict.fromkeys(sites, width), form=form, kind="affine" if kind == "turn" else kind, edges=edges, unit=0.4
    )
    items = []
    for item in concept.interventions:
        probes, maps = item.probes, item.maps
        if probe in STATEFUL:
            probes = tuple(STATEFUL[probe](part) for part in probes if isinstance(part, LinearProbe))
        if kind == "turn":
            maps = tuple(Turn(torch.linspace(-1, 1, width)) for _ in maps)
        items.append(replace(item, probes=probes, maps=maps))
    return replace(concept, interventions=tuple(items))


#: inside what transformers checkpoints, which is the forward pass of a layer, or its call
LAYERS = [Site(f"model.model.layers.{i}.mlp") for i in range(2)]
BLOCKS = [
    Site("unet.down_blocks.0.attentions.0.transformer_blocks.0"),
    Site("unet.mid_block.attentions.0.transformer_blocks.0"),
]


def moved(x: torch.Tensor, h: torch.Tensor, transform: Map, strength: float) -> torch.Tensor:
    return x + h * (transform.apply(x, strength) - x)


@contextmanager
def reference(
    root: Any, concept: Concept, strength: float, state: dict[Site, torch.Tensor], bin_: int = 0, first: bool = True
) -> Iterator[None]:
    """Steering by plain hooks: one equation, no state but what the caller holds."""
    handles = []
    for item in concept.interventions:
        module = root.get_submodule(item.site.path.partition(".")[2])

        def hook(_: Any, args: Any, output: Any, item: Any = item) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            probe, mask, prompt = item.probes[bin_], torch.ones(x.shape[:2]), torch.ones(x.shape[:2])
            if item.site.root == "model":
                mask[:, 0] = float(not first)
                prompt[:] = float(first)
            if isinstance(probe, RunningProbe):
                before = state.get(item.site, torch.zeros(len(x), probe.state_size))
                h, state[item.site] = probe.step(x, mask, prompt, before)
            else:
                h = probe.score(x, mask if item.site.root == "model" else None)
            y = moved(x, h * item.weights[bin_] * mask[..., None], item.maps[bin_], strength * concept.unit)
            return (y, *output[1:]) if isinstance(output, tuple) else y

        handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def checkpointed(model: Any, how: str) -> Iterator[None]:
    """The model with gradient checkpointing, as its own libraries switch it on."""
    if how == "plain":
        yield
        return
    if hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable({"use_reentrant": how != "checkpoint"})
    else:
        model.enable_gradient_checkpointing(
            lambda function, *args: checkpoint(function.__call__, *args, use_reentrant=how != "checkpoint")
        )
    model.train()
    try:
        yield
    finally:
        model.eval()
        disable = getattr(model, "gradient_checkpointing_disable", None) or model.disable_gradient_checkpointing
        disable()


@cache
def embeds() -> torch.Tensor:
    return torch.randn(2, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(b.norm() > 0) and float((a - b).norm() / b.norm()) < 2e-5  # states and strengths are float32


def text_loss(out: Any) -> torch.Tensor:
    return out.logits.tanh().square().mean()


def gradient_of(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    leaf = at.clone().requires_grad_()
    function(leaf).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize(("probe", "kind", "how"), matrix(PAIRS, HOW))
def test_two_forwards_with_other_strengths_before_one_backward(probe: str, kind: str, how: str) -> None:
    model, concept = llama(), concept_of(LAYERS, 32, probe, kind)

    def plain(leaf: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for strength, x in ((1.0, leaf), (-0.5, leaf.flip(1) * 2)):
            with reference(model, concept, strength, {}):
                total = total + text_loss(model(inputs_embeds=x, use_cache=False))
        return total

    with llm.steer(model, {concept: 0.0}, force=True) as steering, checkpointed(model, how):

        def steered(leaf: torch.Tensor) -> torch.Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for strength, x in ((1.0, leaf), (-0.5, leaf.flip(1) * 2)):
                steering.strengths[concept.name] = strength
                total = total + text_loss(model(inputs_embeds=x, use_cache=False))
            steering.strengths[concept.name] = 7.0
            with torch.no_grad():  # a look in between
                model(inputs_embeds=embeds()[:1], use_cache=False)
            return total

        gradient = gradient_of(steered, embeds())
    assert agree(gradient, gradient_of(plain, embeds()))


@pytest.mark.parametrize("probe", sorted(STATEFUL))
def test_what_a_text_went_by_passes_its_gradient_on_to_later_calls(probe: str) -> None:
    model, concept = llama(), concept_of(LAYERS[1:], 32, probe, "affine")

    def write(leaf: torch.Tensor, calls: Callable[[bool], Any]) -> torch.Tensor:
        total, cache = torch.zeros((), dtype=torch.float64), None
        for part in (leaf[:, :4], leaf[:, 4:5], leaf[:, 5:]):
            with calls(cache is None):
                out = model(inputs_embeds=part, past_key_values=cache, use_cache=True)
            cache, total = out.past_key_values, total + text_loss(out)
        return total

    state: dict[Site, torch.Tensor] = {}
    with llm.steer(model, {concept: 1.0}, force=True):
        gradient = gradient_of(lambda leaf: write(leaf, lambda first: checkpointed(model, "plain")), embeds())
    wanted = gradient_of(
        lambda leaf: write(leaf, lambda first: reference(model, concept, 1.0, state, first=first)), embeds()
    )
    assert agree(gradient, wanted)


TIMES = ((800.0, 1.0), (200.0, -0.7))


def denoise(latents: torch.Tensor, step: Callable[[torch.Tensor, float, float], torch.Tensor]) -> torch.Tensor:
    x = latents
    for timestep, strength in TIMES:
        x = x - 0.5 * step(x, timestep, strength)
    return x.square().mean()


def noise() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def predict(x: torch.Tensor, timestep: float) -> torch.Tensor:
    words = torch.ones(len(x), 3, 32, dtype=torch.float64)
    return unet()(x, torch.tensor(timestep), encoder_hidden_states=words).sample


def describe(args: Any, kwargs: Any) -> Call:
    return Call(torch.ones(len(args[0])), torch.arange(len(args[0])), timestep=args[1])


def plain_steps(concept: Concept) -> torch.Tensor:
    def step(x: torch.Tensor, timestep: float, strength: float) -> torch.Tensor:
        with reference(unet(), concept, strength, {}, bin_=int(timestep > 500)):
            return predict(x, timestep)

    return gradient_of(lambda x: denoise(x, step), noise())


WHOLE = ("whole steps", "whole steps, reentrant", "all steps", "all steps, reentrant")


@pytest.mark.parametrize(("probe", "kind", "how"), matrix(PAIRS[:20], (*HOW, *WHOLE)))
def test_a_gradient_through_two_denoising_steps(probe: str, kind: str, how: str) -> None:
    """Two timestep bins, other strengths, and what is checkpointed: blocks, calls, or the whole loop."""
    concept = concept_of(BLOCKS, 16, probe, kind, edges=(500.0,))
    concept = replace(concept, interventions=tuple(_of_width(item) for item in concept.interventions))
    with Steering({concept: 0.0}).attach({"unet": unet()}, {"unet": describe}) as steering:

        def step(x: torch.Tensor, timestep: float, strength: float) -> torch.Tensor:
            steering.strengths[concept.name] = strength
            if how.startswith("whole"):
                return checkpoint(predict, x, timestep, use_reentrant="reentrant" in how)
            return predict(x, timestep)

        def loss(x: torch.Tensor) -> torch.Tensor:
            if how.startswith("all"):
                total = checkpoint(lambda x: denoise(x, step), x, use_reentrant="reentrant" in how)
            else:
                total = denoise(x, step)
            steering.strengths[concept.name] = 5.0
            with torch.no_grad():
                predict(noise()[:1], 100.0)
            return total

        with checkpointed(unet(), how if how in HOW else "plain"):
            gradient = gradient_of(loss, noise())
    assert agree(gradient, plain_steps(concept))


def _of_width(item: Any) -> Any:
    """An intervention of the width of its block: the middle one is wider."""
    if "mid_block" not in item.site.path:
        return item
    wide = lambda part: part.map_tensors(lambda t: torch.cat([t, t.flip(0)]) if t.ndim else t)  # noqa: E731
    return replace(item, probes=tuple(map(wide, item.probes)), maps=tuple(map(wide, item.maps)))


# ---- what cannot be right, and what ends ----------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_a_backward_pass_after_the_block_is_right_or_refused(how: str) -> None:
    model, concept = llama(), concept_of(LAYERS, 32, "linear", "affine")
    with checkpointed(model, how):
        leaf = embeds().clone().requires_grad_()
        with llm.steer(model, {concept: 1.0}, force=True):
            loss = text_loss(model(inputs_embeds=leaf, use_cache=False))
        if how != "plain":
            with pytest.raises(DSASError, match=r"detached before the backward pass.*inside the with block"):
                loss.backward()
            return
        loss.backward()
    with reference(model, concept, 1.0, {}):
        assert agree(leaf.grad, gradient_of(lambda x: text_loss(model(inputs_embeds=x, use_cache=False)), embeds()))


@pytest.mark.parametrize("how", HOW[1:])
def test_a_call_from_before_steering_is_not_computed_again_with_it(how: str) -> None:
    """Where a checkpoint stops before the site, as it has all that it saved, the gradient is right."""
    model, concept = llama(), concept_of([Site("model.model.layers.0.mlp.up_proj")], 48, "linear", "affine")
    with checkpointed(model, how):
        leaf = embeds().clone().requires_grad_()
        loss = text_loss(model(inputs_embeds=leaf, use_cache=False))
        with llm.steer(model, {concept: 1.0}, force=True):
            gradient_of(lambda x: text_loss(model(inputs_embeds=x, use_cache=False)), embeds())
            with pytest.raises(DSASError, match="does not know which call it was"):
                loss.backward()


def elsewhere() -> Concept:
    concept = concept_of(LAYERS, 32, "linear", "affine")
    return replace(concept, interventions=(replace(concept.interventions[1], probe_site=LAYERS[0]),))


@pytest.mark.parametrize("how", HOW)
def test_a_gate_that_reads_elsewhere_passes_its_gradient_or_refuses(how: str) -> None:
    model, concept = llama(), elsewhere()

    def steered(leaf: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for strength in (1.0, -0.5):
            steering.strengths[concept.name] = strength
            total = total + text_loss(model(inputs_embeds=leaf * strength, use_cache=False))
        return total

    with llm.steer(model, {concept: 1.0}, force=True) as steering, checkpointed(model, how):
        if how == "reentrant checkpoint":
            with pytest.raises(DSASError, match=r"goes by what .* shows.*use_reentrant=False"):
                gradient_of(steered, embeds())
            return
        gradient = gradient_of(steered, embeds())
        step = 1e-5 * torch.randn(embeds().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            change = steered(embeds() + step) - steered(embeds() - step)
    assert torch.allclose((gradient * step).sum(), change / 2, rtol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"combine": "blend"}])
@pytest.mark.parametrize("strength", [1.0, "auto"])
def test_second_derivatives_and_accumulation(strength: Any, settings: Any) -> None:
    model, concept = eager(), concept_of(LAYERS, 32, "linear", "additive")
    other = replace(concept_of(LAYERS, 32, "linear", "affine"), name="other")
    concepts: Any = {concept: strength, other: 0.3} if settings else {concept: strength}
    direction = torch.randn(embeds().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with llm.steer(model, concepts, force=True, **settings):

        def slope(x: torch.Tensor) -> torch.Tensor:
            loss = text_loss(model(inputs_embeds=x, use_cache=False))
            (first,) = torch.autograd.grad(loss, x, create_graph=True)
            model(inputs_embeds=x[:1], use_cache=False)  # another call, before what follows
            return (first * direction).sum()

        second = gradient_of(slope, embeds())
        ahead, behind = (slope((embeds() + sign * 1e-3 * direction).requires_grad_()).detach() for sign in (1.0, -1.0))
    assert torch.allclose((second * direction).sum(), (ahead - behind) / 2e-3, rtol=2e-2)


def test_closed_gates_blend_without_a_gradient_of_nothing_by_nothing() -> None:
    model = llama()
    first, second = (replace(concept_of(LAYERS, 32, "constant", "affine"), name=name) for name in ("a", "b"))
    with llm.steer(model, {first: 0.0, second: 0.0}, force=True, combine="blend"):
        assert gradient_of(lambda x: text_loss(model(inputs_embeds=x, use_cache=False)), embeds()).isfinite().all()


def test_records_go_with_their_graphs() -> None:
    model, concept = llama(), concept_of(LAYERS, 32, "prefix", "affine")
    with llm.steer(model, {concept: 1.0}, force=True) as steering:
        for _ in range(4):
            loss = text_loss(model(inputs_embeds=embeds().clone().requires_grad_(), use_cache=False))
        graph = weakref.ref(loss)
        assert len(list(steering._state.history)) == 1 + 0, "the others' graphs are gone"
        loss.backward()
        del loss
        with torch.no_grad():
            model(inputs_embeds=embeds(), use_cache=False)
        model(inputs_embeds=embeds(), use_cache=False)
        gc.collect()
        assert graph() is None
        assert len(list(steering._state.history)) <= 1


def test_torch_func_is_right_or_refused() -> None:
    model = llama()
    for probe in ("linear", "prefix"):
        concept = concept_of(LAYERS, 32, probe, "affine")
        with llm.steer(model, {concept: 1.0}, force=True):
            loss = lambda x: text_loss(model(inputs_embeds=x, use_cache=False))  # noqa: E731
            if probe == "prefix":
                with pytest.raises(DSASError, match=r"torch\.func lets nothing be kept"):
                    torch.func.grad(loss)(embeds())
            else:
                assert agree(torch.func.grad(loss)(embeds()), gradient_of(loss, embeds()))


def test_threads_that_interleave_are_refused() -> None:
    model, concept = llama(), concept_of(LAYERS, 32, "linear", "affine")
    inside, errors = threading.Barrier(2, timeout=20), list[Exception]()
    slow = model.model.embed_tokens.register_forward_hook(lambda *_: [inside.wait(), None][1])

    def call() -> None:
        try:
            model(IDS)
        except DSASError as error:
            errors.append(error)

    try:
        with llm.steer(model, {concept: 1.0}, force=True):
            threads = [threading.Thread(target=call) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        slow.remove()
    assert [str(error)[:40] for error in errors] == ["two threads call 'model' at once, and st"]


@pytest.mark.parametrize("probe", ["linear", "prefix"])
def test_a_compiled_model_reads_new_strengths_with_gradients(probe: str) -> None:
    model, counting = copy.deepcopy(tiny("llama")), Counting()
    concept = concept_of(LAYERS, 32, probe, "affine")
    x = embeds().float()

    def gradients() -> list[torch.Tensor]:
        found = []
        with llm.steer(model, {concept: 1.0}, force=True) as steering:
            for layer in model.model.layers if compiled else []:
                layer.compile(backend=counting)
            for strengths in ((1.0, -0.5), (0.3, 0.0)):
                leaf, total = x.clone().requires_grad_(), torch.zeros(())
                for strength in strengths:
                    steering.strengths[concept.name] = strength
                    total = total + text_loss(model(inputs_embeds=leaf, use_cache=False))
                total.backward()
                assert leaf.grad is not None
                found.append(leaf.grad)
                graphs.append(counting.graphs)
        return found

    graphs: list[int] = []
    compiled = False
    wanted = gradients()
    compiled, graphs = True, []
    found = gradients()
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-3) for a, b in zip(found, wanted, strict=True))
    assert graphs[0] == graphs[1] > 0, "other strengths take no other graph"
