"""What people do with pipelines, before steering and meanwhile: none of it may cost the identities.

One matrix of what happens and to whom. Under whatever happens, strength 0 is the pipeline without steering under the
same, bit for bit, and so is letting go; strength 1 does something, and the same whether it was there first or not; where
nothing but the arithmetic's order changes, it is what it would be if nothing had happened.
"""

from __future__ import annotations

import copy
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
from dsas_core.sites import modules
from dsas_diffusion import find_sites, steer
from dsas_diffusion.families import family_of, roots_of
from dsas_diffusion.steer import PipelineSteering
from tests.diffusion.models import build, latents
from tests.diffusion.test_every_family import BANANA, DOG, concept_of, pipe_of
from tests.helpers import Bare, bases, random_concept

ROLE = {"sd3": "image", "flux": "image"}
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
    return getattr(pipe, family_of(pipe).denoiser)


@contextmanager
def untold() -> Iterator[None]:
    """Nothing that steering warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(not reached|have come to).*")
        yield


# ---- what happens ---------------------------------------------------------------------------------------------------

Undo = Callable[[], object]


def lora(pipe: Any, scale: float | None = None, fuse: bool = False) -> Undo:
    """Low-rank adapters on the denoiser and on the CLIPs."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    weights = {}
    for name, root in roots_of(pipe).items():
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
    layers = [module for module in denoiser.modules() if hasattr(module, "to_k") and hasattr(module, "set_processor")]
    if flux:
        numbered = list(enumerate(layer.add_k_proj for layer in layers if getattr(layer, "add_k_proj", None) is not None))
    else:
        numbered = [(1 + 2 * i, one.to_k) for i, one in enumerate(layer for layer in layers if layer.is_cross_attention)]
    for number, keys in numbered:
        adapter |= {f"{number}.to_{kind}_ip.weight": 0.3 * torch.randn(keys.weight.shape) for kind in "kv"}
        adapter |= {f"{number}.to_{kind}_ip.bias": torch.zeros(len(keys.weight)) for kind in "kv" if flux}
    width = numbered[0][1].in_features
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
    denoiser_of(pipe).set_attention_backend("_native_math")
    return denoiser_of(pipe).reset_attention_backend


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


def in_groups(kind: str) -> Callable[[Any], None]:
    def offload(pipe: Any) -> None:
        from diffusers.hooks import apply_group_offloading

        cpu, blocks = torch.device("cpu"), {"num_blocks_per_group": 1} if kind == "block_level" else {}
        for root in roots_of(pipe).values():
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
        families: to which it happens here. slow: to which it does where there is time.
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


EVENTS = {
    "LoRA": Event(lora, ("sd", "flux"), ("sdxl", "sd3", "sana")),
    "LoRA at another scale": Event(lambda pipe: lora(pipe, 0.3), ("sd",), ("sdxl", "sd3", "flux", "sana")),
    "LoRA, fused": Event(lambda pipe: lora(pipe, fuse=True), ("sd", "flux"), ("sdxl", "sd3", "sana"), rest=1e-4),
    "IP-Adapter": Event(picture_prompt, ("sd", "flux"), ("sdxl",), sets=("sd", "sdxl", "flux"), options=pictured),
    "IP-Adapter with masks": Event(picture_prompt, ("sd",), ("sdxl",), sets=("sd", "sdxl"), options=pictured_in_part),
    "fused QKV": Event(fused, ("sd", "flux"), ("sdxl", "pixart", "sana"), 1e-4, sets=("sd", "sdxl", "pixart")),
    "attention slicing": Event(sliced, ("sd", "sd3"), ("sdxl",), 1e-4, sets=("sd", "sdxl")),
    "attention backend": Event(other_kernels, ("sd", "flux"), ("sdxl", "sd3", "pixart", "sana"), 1e-4),
    "FreeU": Event(freed, ("sd",), ("sdxl",)),
    "channels last": Event(channels_last, ("sd",), ("sdxl",), 1e-4),
    "sequential offload": Event(offloaded, ("sd", "flux", "pixart"), ("sdxl", "sd3", "sana"), 0.0),
    "group offload, leaves": Event(in_groups("leaf_level"), ("sd", "flux"), ("sdxl", "sd3", "pixart", "sana"), 0.0),
    "group offload, blocks": Event(in_groups("block_level"), ("sd", "flux"), ("sdxl", "sd3", "pixart", "sana"), 0.0),
    "bfloat16": Event(cast(torch.bfloat16), ("sd", "flux"), ("sdxl", "sd3", "pixart", "sana"), 0.2),
    "float16": Event(cast(torch.float16), ("sd", "flux"), ("sdxl", "sd3", "pixart", "sana"), 0.03),
    "float8 storage": Event(stored_in_float8, ("sd", "flux"), ("sdxl", "sd3", "pixart", "sana"), 0.5),
}
#: what has to do with processors, so that those of DSAS are tried, too
PROCESSORS = ("LoRA", "IP-Adapter", "fused QKV", "attention slicing", "attention backend", "sequential offload")
CELLS = [
    pytest.param(name, family, attach, id=f"{name}-{family}-{attach}", marks=[pytest.mark.slow] * (family in event.slow))
    for name, event in EVENTS.items()
    for family in (*event.families, *event.slow)
    for attach in ("hooks", *(("processor",) if name in PROCESSORS else ()))
]


@pytest.mark.parametrize(("name", "family", "attach"), CELLS)
def test_steering_lives_with(name: str, family: str, attach: str, tmp_path: Path) -> None:
    event = EVENTS[name]
    pipe, options = build(family, tmp_path), event.options(family)
    base, plain = picture(family), picture(family, 1.0)
    undo = event.do(pipe)
    bare = run(pipe, family, **options)
    if attach == "processor" and name.startswith("IP-Adapter"):
        with pytest.raises(DSASError, match=r'has weights of its own.*steer with attach="hooks"'):
            steered(pipe, family, 1.0, attach)
    else:
        with steered(pipe, family, 0.0, attach) as steering, untold():
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
            with pytest.warns(UserWarning, match=r"not reached.*another attention processor has been set.*attach=.hooks"):
                assert torch.equal(run(pipe, family, **options), bare)
        else:
            with untold():
                assert torch.equal(run(pipe, family, **options), bare)
                turn(steering, 1.0)
                assert torch.equal(run(pipe, family, **options), made), "the same as when it was there first"
    assert torch.equal(run(pipe, family, **options), bare)
    if undo is not None:
        undo()
        assert close(run(pipe, family), base, event.rest)
        assert Bare.of(denoiser_of(pipe)).hooks == hooks
