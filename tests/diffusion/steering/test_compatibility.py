"""What people do with pipelines, before steering and meanwhile: none of it may cost the identities.

One matrix of what happens and to whom. Under whatever happens, strength 0 is the pipeline without steering under the
same, bit for bit, and so is letting go; strength 1 does something, and the same whether it was there first or not;
where nothing but the arithmetic's order changes, it is what it would be if nothing had happened.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import Concept, DSASError
from dsas_core.model.sites import modules
from dsas_diffusion import find_sites, steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.steering.steer import PipelineSteering
from tests.diffusion.steering.test_identities_by_family import BANANA, DOG, ROLES, concept_of, pipe_of
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import bases
from tests.fixtures.pipelines import FAMILIES, build, latents
from tests.fixtures.visitors import Bare

ROLE = {family: "image" for family, roles in ROLES.items() if "image" in roles}
#: of the embedding that a picture prompt is given as
EMBEDDING = 12


def run(pipe: Any, family: str, prompt: str = BANANA, **options: Any) -> torch.Tensor:
    return latents(pipe, family, prompt, **options)


def concepts(family: str) -> list[Concept]:
    """One that steers the denoiser's attention, and one that steers the text encoders."""
    return [concept_of(family, ROLE.get(family, "cross")), replace(concept_of(family, "text"), name="text")]


def steered(pipe: Any, family: str, strength: float, attach: str = "hooks") -> PipelineSteering:
    return steer(pipe, dict.fromkeys(concepts(family), strength), attach=attach)


@cache
def picture(family: str, strength: float | None = None) -> torch.Tensor:
    """What there is when nothing happens; None is without steering."""
    pipe = pipe_of(family)
    with nullcontext() if strength is None else steered(pipe, family, strength):
        return run(pipe, family)


def turn(steering: PipelineSteering, strength: float) -> None:
    steering.strengths.update(dict.fromkeys(steering.strengths, strength))


def close(a: torch.Tensor, b: torch.Tensor, part: float) -> bool:
    """Equal up to a part of what there is."""
    return float((a.float() - b.float()).abs().max()) <= part * float(b.float().std())


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, adapt(pipe).family.denoiser)


@contextmanager
def no_warnings() -> Iterator[None]:
    """Nothing that steering warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(not reached|have come to|answers from).*")
        yield


# ---- what happens ---------------------------------------------------------------------------------------------------

Undo = Callable[[], object]


def lora(pipe: Any, scale: float | None = None, fuse: bool = False) -> Undo:
    """Low-rank adapters on the denoiser and on the CLIPs."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    weights = {}
    for name, root in adapt(pipe).roots.items():
        text = name.startswith("text")
        if text and "CLIP" not in type(root).__name__:
            continue
        targets = ["q_proj", "v_proj"] if text else ["to_q", "to_k", "to_v", "to_out.0"]
        adapted = copy.deepcopy(root)
        adapted.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        weights |= {f"{name}.{key}": value for key, value in get_peft_model_state_dict(adapted).items()}
    pipe.load_lora_weights(weights, adapter_name="one")
    if scale is not None:
        pipe.set_adapters(["one"], [scale])
    if not fuse:
        return pipe.unload_lora_weights
    pipe.fuse_lora()

    def undo() -> None:
        pipe.unfuse_lora()
        pipe.unload_lora_weights()

    return undo


def picture_prompt(pipe: Any) -> Undo:
    """An IP-Adapter."""
    torch.manual_seed(0)
    denoiser, adapter = denoiser_of(pipe), {}
    flux = "Flux" in type(pipe).__name__
    layers = [module for module in denoiser.modules() if hasattr(module, "set_processor")]
    if flux:  # numbered one by one; in a UNet every second layer crosses
        found = [layer.add_k_proj for layer in layers if getattr(layer, "add_k_proj", None) is not None]
        numbered = list(enumerate(found))
    else:
        found = [layer.to_k for layer in layers if layer.is_cross_attention]
        numbered = [(1 + 2 * i, keys) for i, keys in enumerate(found)]
    for number, keys in numbered:
        adapter |= {f"{number}.to_{kind}_ip.weight": 0.3 * torch.randn(keys.weight.shape) for kind in "kv"}
        adapter |= {f"{number}.to_{kind}_ip.bias": torch.zeros(len(keys.weight)) for kind in "kv" if flux}
    width = found[0].in_features
    projection = {
        "proj.weight": torch.randn(4 * width, EMBEDDING),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    folder = {"image_encoder_pretrained_model_name_or_path": None} if flux else {"image_encoder_folder": None}
    weights = {"image_proj": projection, "ip_adapter": adapter}
    pipe.load_ip_adapter(weights, subfolder="", weight_name="", **folder)
    pipe.set_ip_adapter_scale(0.7)
    return pipe.unload_ip_adapter


def fused(pipe: Any) -> Undo:
    there = pipe if hasattr(pipe, "fuse_qkv_projections") else denoiser_of(pipe)
    there.fuse_qkv_projections()
    return there.unfuse_qkv_projections


def sliced(pipe: Any) -> Undo:
    pipe.enable_attention_slicing(1)
    return pipe.disable_attention_slicing


def other_kernels(pipe: Any) -> Undo:
    denoiser = denoiser_of(pipe)
    denoiser.set_attention_backend("_native_math")

    def undo() -> None:
        denoiser.set_attention_backend("native")  # resetting leaves it as what all models take that name none
        denoiser.reset_attention_backend()

    return undo


def freed(pipe: Any) -> Undo:
    pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
    return pipe.disable_freeu


def offloaded(pipe: Any) -> Undo:
    """What `enable_sequential_cpu_offload` does, which asks for another device than the CPU."""
    from accelerate import cpu_offload

    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"))
    return pipe.remove_all_hooks


def offloaded_by_parts(pipe: Any) -> Undo:
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe.remove_all_hooks


def in_groups(kind: str) -> Callable[[Any], None]:
    def offload(pipe: Any) -> None:
        from diffusers.hooks import apply_group_offloading, group_offloading

        if torch.accelerator.current_accelerator() is None and not hasattr(group_offloading, "TorchDeviceBackend"):
            pytest.skip("this diffusers groups nothing where there is no accelerator")
        cpu, blocks = torch.device("cpu"), {"num_blocks_per_group": 1} if kind == "block_level" else {}
        for root in adapt(pipe).roots.values():
            apply_group_offloading(root, onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)

    return offload


def cast(dtype: torch.dtype) -> Callable[[Any], None]:
    def to(pipe: Any) -> None:
        pipe.to(dtype)

    return to


def stored_in_float8(pipe: Any) -> None:
    denoiser_of(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def channels_last(pipe: Any) -> None:
    pipe.unet.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Event:
    """Something that happens to a pipeline.

    Args:
        do: does it; gives what undoes it, where something does.
        families: to which it happens here. slow: to which besides, where there is time.
        noise: how far it alone moves pictures, of their deviation; None where it does what nobody compares.
        rest: how far it moves them when it is undone.
        sets: whether it sets attention processors, so that DSAS's are gone.
        options: what pipelines are then called with, by family.
    """

    do: Callable[[Any], Undo | None]
    families: tuple[str, ...]
    slow: tuple[str, ...] = ()
    noise: float | None = None
    rest: float = 0.0
    sets: tuple[str, ...] = ()
    options: Callable[[str], dict[str, Any]] = lambda family: {}


def pictured(family: str) -> dict[str, Any]:
    """A picture to follow; and, of two calls or two rows, none for the negative prompt."""
    image = torch.randn(1, 1, EMBEDDING, generator=torch.Generator().manual_seed(0))
    if family == "flux":
        return {"ip_adapter_image_embeds": [image], "negative_ip_adapter_image_embeds": [0 * image]}
    return {"ip_adapter_image_embeds": [torch.cat([0 * image, image])]}


def pictured_in_part(family: str) -> dict[str, Any]:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    return {**pictured(family), "cross_attention_kwargs": {"ip_adapter_masks": [mask]}}


#: whose pipelines came later
NEW = ("flux2", "qwen", "zimage", "lumina")
OTHERS = ("sdxl", "sd3", "pixart", "sana", *NEW)
#: FLUX.2's pipeline here is moved by bfloat16 alone as far as by steering; by float16 it is not
CALM = tuple(family for family in OTHERS if family != "flux2")
EVENTS = {
    "LoRA": Event(lora, ("sd", "flux"), ("sdxl", "sd3", "sana", *NEW)),
    "LoRA at another scale": Event(lambda pipe: lora(pipe, 0.3), ("sd",), ("sdxl", "sd3", "flux", "sana", *NEW)),
    "LoRA, fused": Event(lambda pipe: lora(pipe, fuse=True), ("flux",), ("sd", "sdxl", "sd3", "sana", *NEW), rest=1e-4),
    "IP-Adapter": Event(picture_prompt, ("flux",), ("sd", "sdxl"), sets=("sd", "sdxl", "flux"), options=pictured),
    "IP-Adapter with masks": Event(picture_prompt, ("sd",), ("sdxl",), sets=("sd", "sdxl"), options=pictured_in_part),
    "fused QKV": Event(
        fused, ("sd", "flux"), ("sdxl", "pixart", "sana", "flux2", "qwen"), 1e-4, sets=("sd", "sdxl", "pixart")
    ),
    "attention slicing": Event(sliced, ("sd",), ("sdxl", "sd3"), 1e-4, sets=("sd", "sdxl")),
    "attention backend": Event(other_kernels, ("sd", "flux"), OTHERS, 1e-4),
    "FreeU": Event(freed, ("sd",), ("sdxl",)),
    "channels last": Event(channels_last, ("sd",), ("sdxl",), 1e-4),
    "sequential offload": Event(offloaded, ("sd", "flux", "pixart"), ("sdxl", "sd3", "sana", *NEW), 1e-4),
    "model offload": Event(offloaded_by_parts, ("sd", "flux"), OTHERS, 1e-4),
    "group offload, leaves": Event(in_groups("leaf_level"), ("flux",), ("sd", *OTHERS), 1e-4),
    "group offload, blocks": Event(in_groups("block_level"), ("sd",), ("flux", *OTHERS), 1e-4),
    "bfloat16": Event(cast(torch.bfloat16), ("sd", "flux"), CALM, 0.2),
    "float16": Event(cast(torch.float16), ("flux",), ("sd", *OTHERS), 0.03),
    "float8 storage": Event(stored_in_float8, ("sd", "flux"), OTHERS, 0.5),
}
#: what has to do with processors, so that those of DSAS are tried, too; and with whom where time is short
PROCESSORS = {
    "LoRA": (),
    "IP-Adapter": ("flux",),
    "IP-Adapter with masks": (),
    "fused QKV": ("sd",),
    "attention slicing": ("sd",),
    "attention backend": ("flux",),
    "sequential offload": (),
}
CELLS = [
    pytest.param(name, family, attach, id=f"{name}-{family}-{attach}", marks=[] if family in soon else pytest.mark.slow)
    for name, event in EVENTS.items()
    for attach, soon in (("hooks", event.families), ("processor", PROCESSORS.get(name)))
    if soon is not None
    for family in (*event.families, *event.slow)
    if family in FAMILIES and not (attach == "processor" and family in ("zimage", "lumina"))  # which take none
]


@pytest.mark.parametrize(("name", "family", "attach"), CELLS)
def test_steering_lives_with(name: str, family: str, attach: str, tmp_path: Path) -> None:
    event = EVENTS[name]
    pipe, options = build(family, tmp_path), event.options(family)
    base, plain = picture(family), picture(family, 1.0)
    undo = event.do(pipe)
    bare = run(pipe, family, **options)
    assert event.noise is not None or not close(bare, base, 0.01), "something has happened"
    if attach == "processor" and name.startswith("IP-Adapter"):
        with pytest.raises(DSASError, match=r'has weights of its own.*steer with attach="hooks"'):
            steered(pipe, family, 1.0, attach)
    else:
        with steered(pipe, family, 0.0, attach) as steering, no_warnings():
            assert torch.equal(run(pipe, family, **options), bare)
            turn(steering, 1.0)
            made = run(pipe, family, **options)
        assert not close(made, bare, 0.05), "strength 1 does something"
        assert event.noise is None or close(made, plain, event.noise), "the same as without the event"
    assert torch.equal(run(pipe, family, **options), bare)
    if undo is not None:
        undo()
        assert close(run(pipe, family), base, event.rest)

    pipe = build(family, tmp_path)
    hooks = Bare.of(denoiser_of(pipe)).hooks
    with steered(pipe, family, 0.0, attach) as steering:
        undo = event.do(pipe)
        if attach == "processor" and family in event.sets:
            with pytest.warns(UserWarning, match=r"not reached.*another attention processor has been .*attach=.hooks"):
                assert torch.equal(run(pipe, family, **options), bare)
        else:
            with no_warnings():
                assert torch.equal(run(pipe, family, **options), bare)
                turn(steering, 1.0)
                assert torch.equal(run(pipe, family, **options), made), "the same as when it was there first"
    assert torch.equal(run(pipe, family, **options), bare)
    if undo is not None:
        undo()
        assert close(run(pipe, family), base, event.rest)
        assert Bare.of(denoiser_of(pipe)).hooks == hooks


# ---- copies, and pipelines of the same parts ------------------------------------------------------------------------


def saved(pipe: Any, folder: Path) -> Any:
    pipe.save_pretrained(folder / "saved")
    made = type(pipe).from_pretrained(folder / "saved")
    made.set_progress_bar_config(disable=True)
    return made


COPIES: dict[str, Callable[[Any, Path], Any]] = {
    "saved": saved,
    "deepcopy": lambda pipe, folder: copy.deepcopy(pipe),
    "pickle": lambda pipe, folder: pickle.loads(pickle.dumps(pipe)),
}


@pytest.mark.parametrize(
    ("way", "family", "attach"),
    [
        ("saved", "sd", "hooks"),
        ("saved", "flux", "processor"),
        ("deepcopy", "sd", "processor"),
        ("deepcopy", "flux", "hooks"),
        ("pickle", "sd", "processor"),
        ("pickle", "flux", "hooks"),
    ],
)
def test_a_copy_is_not_steered_and_can_be_by_itself(way: str, family: str, attach: str, tmp_path: Path) -> None:
    pipe = build(family, tmp_path)
    noise = 1e-5 if way == "saved" else 0.0  # the same weights, mapped from a file, lie elsewhere than they did
    with steered(pipe, family, 1.0, attach):
        other = COPIES[way](pipe, tmp_path)
        bare = run(other, family)
        assert close(bare, picture(family), noise)
        assert torch.equal(run(pipe, family), picture(family, 1.0)), "the original is steered all the same"
        with steered(other, family, -0.5, attach) as steering:
            assert not close(run(other, family), picture(family), 0.01)
            turn(steering, 1.0)
            assert close(run(other, family), picture(family, 1.0), noise)
            turn(steering, 0.0)
            assert torch.equal(run(other, family), bare)
            assert torch.equal(run(pipe, family), picture(family, 1.0)), "whatever the copy's strength"
    assert torch.equal(run(pipe, family), picture(family))
    assert torch.equal(run(other, family), bare)


@pytest.mark.parametrize(("family", "attach"), [("sd", "hooks"), ("flux", "processor")])
def test_another_pipeline_of_the_same_parts(family: str, attach: str, tmp_path: Path) -> None:
    """Rows follow from the pipeline that is steered; the other is refused, before as after the first has run."""
    pipe = build(family, tmp_path)
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    with steered(pipe, family, 1.0, attach):
        for _ in range(2):
            with pytest.raises(DSASError, match="the denoiser ran outside the pipeline that is steered"):
                run(other, family)
            assert torch.equal(run(pipe, family), picture(family, 1.0))
        with pytest.raises(DSASError, match=r"another pipeline of the same parts is being steered: dsas\.steered"):
            steered(other, family, 1.0, attach)
        with pytest.raises(DSASError, match=r"is steering this model already|a processor steers attention layers"):
            steered(pipe, family, 1.0, attach)
        assert torch.equal(run(pipe, family), picture(family, 1.0)), "what was refused has left nothing"
    assert torch.equal(run(other, family), picture(family))
    with steered(other, family, 1.0, attach):
        assert torch.equal(run(other, family), picture(family, 1.0))


def test_a_method_that_the_pipeline_had_for_itself_comes_back(tmp_path: Path) -> None:
    pipe = build("sd", tmp_path)
    own, called = pipe.encode_prompt, []

    def encode(*args: Any, **kwargs: Any) -> Any:
        called.append(args)
        return own(*args, **kwargs)

    pipe.encode_prompt = encode
    with steered(pipe, "sd", 1.0):
        assert torch.equal(run(pipe, "sd"), picture("sd", 1.0))
    assert called
    assert pipe.encode_prompt is encode


# ---- threads, and calls that do not end -----------------------------------------------------------------------------


@pytest.mark.parametrize("attach", ["hooks", pytest.param("processor", marks=pytest.mark.slow)])
def test_two_threads_with_two_pipelines(attach: str, tmp_path: Path) -> None:
    """Each has its own strengths, rows and clock; a pipeline itself is for one thread at a time."""
    jobs = [("sd", 1.0, BANANA), ("sd", -0.5, DOG), ("flux", 1.0, BANANA)]
    pipes = [build(family, tmp_path / str(i)) for i, (family, _, _) in enumerate(jobs)]
    alone, made = [], [[] for _ in jobs]
    for pipe, (family, strength, prompt) in zip(pipes, jobs, strict=True):
        with steered(pipe, family, strength, attach):
            alone.append(run(pipe, family, prompt, num_inference_steps=4))
    together = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        family, strength, prompt = jobs[i]
        with steered(pipes[i], family, strength, attach):
            for _ in range(2):
                together.wait(60)
                made[i].append(run(pipes[i], family, prompt, num_inference_steps=4))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, made, strict=True):
        assert [torch.equal(one, expected) for one in found] == [True, True]


@contextmanager
def breaking(pipe: Any, where: str, at: int, error: type[BaseException]) -> Iterator[None]:
    """A call breaks off where a module has run for the `at`-th time."""
    runs = itertools.count(1)

    def hook(*_: Any) -> None:
        if next(runs) == at:
            raise error

    handle = modules(adapt(pipe).roots)[where].register_forward_hook(hook)
    try:
        with pytest.raises(error):
            yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("family", "where", "at", "error", "attach"),
    [
        ("sd", "text_encoder.encoder.layers.1", 2, KeyboardInterrupt, "hooks"),  # at the negative prompt
        ("sd", "unet.mid_block", 2, KeyboardInterrupt, "hooks"),  # in the second step
        ("sd", "unet.mid_block", 2, RuntimeError, "processor"),
        ("flux", "text_encoder_2.encoder.block.1", 2, KeyboardInterrupt, "processor"),
        ("flux", "transformer.transformer_blocks.1", 2, KeyboardInterrupt, "hooks"),  # at the first step's second call
        ("flux", "transformer.single_transformer_blocks.1", 3, RuntimeError, "processor"),
    ],
)
def test_a_call_that_breaks_off(
    family: str, where: str, at: int, error: type[BaseException], attach: str, tmp_path: Path
) -> None:
    pipe = build(family, tmp_path)
    run(pipe, family)  # diffusers leaves attributes of its own
    bare = [Bare.of(root) for root in adapt(pipe).roots.values()]
    own = dict(denoiser_of(pipe).attn_processors)
    steering = steered(pipe, family, 1.0, attach)
    with breaking(pipe, where, at, error):
        run(pipe, family)
    assert torch.equal(run(pipe, family), picture(family, 1.0)), "the next call is right"
    with breaking(pipe, where, at, error), steering:
        run(pipe, family)
    assert torch.equal(run(pipe, family), picture(family)), "and so is the pipeline without steering"
    assert [Bare.of(root) for root in adapt(pipe).roots.values()] == bare
    assert denoiser_of(pipe).attn_processors == own
    assert "encode_prompt" not in vars(pipe)


# ---- modules that are replaced --------------------------------------------------------------------------------------


def test_an_adapter_over_a_site_warns(tmp_path: Path) -> None:
    """PEFT puts its own module around a linear layer, and the hook stays inside, where the adapter does not show."""
    pipe = build("sd", tmp_path)
    sites = find_sites(pipe, r"unet\.mid_block.*\.attn2\.to_q")
    concept = random_concept(dict.fromkeys(sites, 32), base=bases(pipe))
    with steer(pipe, {concept: 1.0}):
        undo = lora(pipe)
        with pytest.warns(UserWarning, match=rf"other modules have come to {sites[0]} since .*steer anew"):
            inside = run(pipe, "sd")
    with steer(pipe, {concept: 1.0}), no_warnings():
        assert not torch.equal(run(pipe, "sd"), inside), "anew it goes to the adapted layer"
    with steer(pipe, {concept: 1.0}):
        undo()
        with pytest.warns(UserWarning, match=f"other modules have come to {sites[0]}") as told:
            assert torch.equal(run(pipe, "sd"), picture("sd"))
        assert not [one for one in told if "not reached" in str(one.message)], "once is enough"
    assert torch.equal(run(pipe, "sd"), picture("sd"))


def test_words_warn_of_an_adapter_over_the_queries(tmp_path: Path) -> None:
    pipe, concept = build("sd", tmp_path), concepts("sd")[0]
    with steer(pipe, {concept: 1.0}, words={concept.name: "banana"}):
        before = run(pipe, "sd")
        undo = lora(pipe)
        with pytest.warns(UserWarning, match=r"other modules have come to unet\.\S*\.attn2\.to_q"):
            run(pipe, "sd")
        undo()
        with no_warnings():
            assert torch.equal(run(pipe, "sd"), before)


def test_another_denoiser_warns(tmp_path: Path) -> None:
    pipe, concept = build("sd", tmp_path), concepts("sd")[0]
    with steer(pipe, {concept: 1.0}):
        pipe.unet = copy.deepcopy(pipe.unet)
        with pytest.warns(UserWarning, match=r"other modules have come to unet\.down_blocks\.0"):
            assert torch.equal(run(pipe, "sd"), picture("sd"))


def test_words_need_keys_that_are_not_fused(tmp_path: Path) -> None:
    pipe, concept = build("sd", tmp_path), concepts("sd")[0]
    with steer(pipe, {concept: 1.0}, words={concept.name: "banana"}):
        before = run(pipe, "sd")
        undo = fused(pipe)
        with pytest.raises(DSASError, match=r"does not show its keys.*unfuse_qkv_projections"):
            run(pipe, "sd")
        undo()
        assert torch.equal(run(pipe, "sd"), before)
