"""What the tests build on: tiny models from configs, random parts, random concepts, and plain ways to run them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from dsas_core import Call, Concept, Intervention, Site, visit
from dsas_core.fingerprints import fingerprint
from dsas_core.maps import AffineMap, Map, MeanShiftMap, SupportMap
from dsas_core.probes import ConstantProbe, LinearProbe, PooledProbe, Probe, ProductProbe
from dsas_core.sites import canonical
from dsas_diffusion.builtin import architecture
from dsas_diffusion.families import roots_of

TINY = replace(
    architecture.PRESETS["cpu"],
    image_size=32,
    autoencoder_width=8,
    autoencoder_blocks=(0, 1, 1),
    text_width=32,
    text_layers=2,
    unet_channels=(16, 32),
)
STEPS = 3
FORMS = ("linear", "pooled", "product", "constant")
MAPS = ("additive", "affine", "support", "mean-shift")
BANANA, DOG = "a banana on a table", "a dog and a cat"


#: a denoiser with one block down and one up, for what takes long in a deep one
SHALLOW = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
SHALLOW |= {"block_out_channels": (16,), "mid_block_type": None}


def build_flow_pipe(folder: Path, shallow: bool = False) -> Any:
    """The built-in architecture in miniature: flow matching, attention in the inner blocks only."""
    torch.manual_seed(0)
    tokenizer = architecture.build_tokenizer(folder)
    vae, unet = architecture.build_autoencoder(TINY), architecture.build_unet(TINY)
    text_encoder = drawn(architecture.build_text_encoder(TINY, tokenizer), seed=1)
    pipe = architecture.build_pipeline(vae, text_encoder, tokenizer, unet)
    if shallow:
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config, **SHALLOW)
    return _ready(pipe)


def build_ddim_pipe(folder: Path, shallow: bool = False) -> Any:
    """Another Stable Diffusion: DDIM on epsilon, two down blocks with cross-attention, linear projections."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    tokenizer = architecture.build_tokenizer(folder)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TINY.text_width,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    text_encoder = drawn(architecture.build_text_encoder(TINY, tokenizer), seed=1)
    pipe = architecture.build_pipeline(architecture.build_autoencoder(TINY), text_encoder, tokenizer, unet)
    if shallow:
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config, **SHALLOW)
    pipe.scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    return _ready(pipe)


@torch.no_grad()
def drawn(model: Any, seed: int = 0) -> Any:
    """A model with random weights that are the same whatever version of transformers built it.

    Versions draw them in other orders, and what a test sees of a random model hangs on the draw.
    """
    random = torch.Generator().manual_seed(seed)
    weights = {canonical(name): weight for name, weight in model.named_parameters()}
    for _, weight in sorted(weights.items()):
        if weight.numel() > 1 and weight.std() > 0:  # neither norms nor biases
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=random)
    return model


def _ready(pipe: Any) -> Any:
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.float().eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, prompts: str | Sequence[str], seeds: Sequence[int] = (0,), **options: Any) -> torch.Tensor:
    """What the pipeline makes of prompts, before decoding; one noise per picture, by its seed."""
    shape = (1, 4, 8, 8)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    settings = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent", **options}
    prompt = prompts if prompts is None or isinstance(prompts, str) else list(prompts)
    return pipe(prompt, latents=noise.to(pipe.unet.dtype), **settings).images


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to float noise."""
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Different by far more than float noise."""
    return float((a - b).detach().abs().max()) > 1e-2


def vector(*numbers: float) -> torch.Tensor:
    """A vector for golden numbers."""
    return torch.tensor(numbers, dtype=torch.float64)


class Recorder:
    """A visitor that keeps what comes by and changes nothing."""

    def __init__(self) -> None:
        self.seen: dict[Site, list[torch.Tensor]] = {}
        self.calls: list[tuple[str, Call]] = []

    def begin(self, root: str, call: Call) -> None:
        self.calls.append((root, call))

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.seen.setdefault(site, []).append(x.detach().clone())


class Doubler(Recorder):
    """A visitor that doubles everything."""

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x * 2


def seen_at(pipe: Any, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
    """What comes by at each site in one run."""
    recorder = Recorder()
    with visit({"unet": pipe.unet, "text_encoder": pipe.text_encoder}, sites, recorder):
        latents(pipe, "a banana", num_inference_steps=1)
    return {site: seen[0] for site, seen in recorder.seen.items()}


class Counting:
    """A compiler backend that runs what it is given as it is, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        self.graphs += 1
        return module.forward


@dataclass(frozen=True, eq=False)
class Turn(Map):
    """A map that is not linear in its strength: it turns pairs of neighbouring channels."""

    angle: torch.Tensor

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        turned = torch.as_tensor(strength) * self.angle.to(x.dtype)
        return x * torch.cos(turned) + x.roll(1, -1) * torch.sin(turned)


def random_probe(form: str, width: int, random: torch.Generator, scale: float = 1.0) -> Probe:
    """A probe of the wanted form whose scores are spread over (0, 1) on activations of that scale."""

    def linear() -> LinearProbe:
        weight = torch.randn(width, generator=random) / (scale * width**0.5)
        return LinearProbe(weight, torch.randn((), generator=random) * 0.3)

    if form == "linear":
        return linear()
    if form == "pooled":
        return PooledProbe(linear())
    if form == "product":
        return ProductProbe((linear(), PooledProbe(linear())))
    assert form == "constant"
    return ConstantProbe(0.5)


def random_map(kind: str, width: int, random: torch.Generator) -> Map:
    shift = torch.randn(width, generator=random)
    if kind == "additive":
        return AffineMap(shift)
    affine = AffineMap(shift, 1 + 0.3 * torch.randn(width, generator=random))
    supported = SupportMap(affine, torch.full((width,), -0.5), torch.full((width,), 1.5))
    return {"affine": affine, "support": supported, "mean-shift": MeanShiftMap(supported)}[kind]


def random_concept(
    sites: Mapping[Site, int | torch.Tensor],
    *,
    form: str = "linear",
    kind: str = "affine",
    edges: Sequence[float] = (),
    name: str = "random",
    unit: float = 1.0,
    weight: float = 1.0,
    seed: int = 0,
    base: Mapping[str, str] = MappingProxyType({}),
    **fields: Any,
) -> Concept:
    """A concept with random parts at every site, different ones in every timestep bin.

    `sites` gives the width of each site, or activations that were seen there; `base` may be of more roots than theirs.
    """
    random = torch.Generator().manual_seed(seed)
    bins = range(len(edges) + 1)
    interventions = []
    for site, seen in sites.items():
        width, scale = (seen, 1.0) if isinstance(seen, int) else (seen.shape[-1], float(seen.std()))
        probes = tuple(random_probe(form, width, random, scale) for _ in bins)
        maps = tuple(random_map(kind, width, random) for _ in bins)
        interventions.append(Intervention(site, probes, maps, (weight,) * len(bins)))
    here = {site.root: base[site.root] for site in sites if site.root in base}
    return Concept(name=name, interventions=tuple(interventions), edges=tuple(edges), unit=unit, base=here, **fields)


def bases(pipe: Any) -> dict[str, str]:
    """Fingerprints of what can be steered."""
    return {name: fingerprint(root) for name, root in roots_of(pipe).items()}


def document_of(result: tuple[int, str, str]) -> Any:
    """The one JSON document of a command that succeeded without a word on standard error."""
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def assert_one_line(err: str, *expected: str) -> None:
    """Standard error is one line that has all these texts, and no traceback."""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for text in expected:
        assert text in err


@dataclass
class Bare:
    """How many hooks and attributes a model carries."""

    hooks: int
    attributes: list[tuple[str, ...]]

    @classmethod
    def of(cls, model: torch.nn.Module) -> Bare:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
        hooks = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
        return cls(hooks, [tuple(sorted(vars(module))) for module in model.modules()])
