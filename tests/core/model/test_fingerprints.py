"""Which models a concept fits: other weights are a warning, another architecture is an error."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from dsas_core import Concept, DSASError, Site
from dsas_core.model.fingerprints import describe_module, fingerprint, has_other_weights, weights_digest
from tests.fixtures.concepts import random_concept

WIDE = Site("unet.0")


def model(seed: int = 0, width: int = 12, layers: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def concept(whole: nn.Module, site: Site = WIDE, width: int = 12, **fields: Any) -> Concept:
    about = {"base": {"unet": fingerprint(whole)}, "learned_on": {"unet": describe_module(whole)}}
    return random_concept({site: width}, provenance={"model": "stabilityai/big"}, **{**about, **fields})


def warned(learned: Concept, here: nn.Module, **options: bool) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learned.check({"unet": here}, **options)
    return [str(warning.message) for warning in caught]


def test_digests_tell_weights_as_far_as_they_are_here() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    assert weights_digest({"unet": a}) == weights_digest({"unet": a}) != weights_digest({"unet": b})
    assert weights_digest({"unet": a}) != weights_digest({"text": a})
    from accelerate import cpu_offload

    before = weights_digest({"unet": a})
    cpu_offload(a, execution_device=torch.device("cpu"))
    assert a.weight.is_meta
    assert weights_digest({"unet": a}) == before
    with pytest.raises(DSASError, match="weight has no values: load the model's weights first"):
        weights_digest({"unet": nn.Linear(3, 4, device="meta")})


def test_digests_tell_adapters_by_their_scale() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(target_modules=["0"]), nn.Sequential(nn.Linear(3, 4)))
    digests = [weights_digest({"unet": model})]
    model[0].set_scale("default", 0.3)
    digests.append(weights_digest({"unet": model}))
    model[0].enable_adapters(False)
    digests.append(weights_digest({"unet": model}))
    assert len(set(digests)) == 3


def test_fingerprints_tell_architectures_not_weights() -> None:
    a, b = nn.Linear(3, 4), nn.Linear(3, 4)
    assert fingerprint(a) == fingerprint(b)
    assert fingerprint(a) != fingerprint(nn.Linear(3, 5))
    assert fingerprint(nn.Sequential(a)) != fingerprint(a)
    assert fingerprint(torch.compile(a)) == fingerprint(a)
    packed = nn.Linear(3, 4)
    packed.weight = nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)
    assert fingerprint(packed) != fingerprint(a)
    packed.weight.quant_state = type("QuantState", (), {"shape": torch.Size([4, 3])})()  # as bitsandbytes has it
    assert fingerprint(packed) == fingerprint(a)


def test_the_same_architecture_with_other_weights_is_told_of_in_a_line() -> None:
    learned = concept(model())
    assert warned(learned, model()) == []
    (line,) = warned(learned, model(seed=1))
    assert "was learned on stabilityai/big, and this model has other weights in its unet" in line
    assert "\n" not in line
    assert warned(learned, model(seed=1), force=True) == []
    assert warned(concept(model(), learned_on={}), model(seed=1)) == [], "older files have no sample"


def test_it_is_told_once() -> None:
    learned = concept(model(), name="once")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            learned.check({"unet": model(seed=1)})
    assert len(caught) == 1


@pytest.mark.parametrize("known", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("here", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precision_makes_no_difference_and_a_little_training_does(known: torch.dtype, here: torch.dtype) -> None:
    whole = model(width=64)
    with torch.no_grad():
        whole[0].weight *= 1e-4  # float16 does not hold these in full
    description = describe_module(copy.deepcopy(whole).to(known))
    assert not has_other_weights(copy.deepcopy(whole).to(here), description)
    with torch.no_grad():
        for layer in whole:
            layer.weight *= 1 + 0.05 * torch.randn_like(layer.weight)
    assert has_other_weights(whole.to(here), description)


def test_adapters_and_compilation_make_no_difference() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    whole = model()
    description = describe_module(whole)
    adapted = inject_adapter_in_model(LoraConfig(target_modules=["0", "2"], init_lora_weights=False), model())
    assert any("lora_" in name for name, _ in adapted.named_parameters())
    assert describe_module(adapted) == description == describe_module(torch.compile(whole))
    assert not has_other_weights(adapted, description)


def test_what_is_offloaded_is_read_and_what_is_nowhere_or_quantised_is_passed_over() -> None:
    from accelerate import cpu_offload

    description, offloaded = describe_module(model()), model()
    digest = weights_digest({"unet": offloaded})
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert offloaded[0].weight.is_meta
    assert describe_module(offloaded) == description
    assert weights_digest({"unet": offloaded}) == digest
    nowhere = describe_module(model().to("meta"))
    assert set(nowhere["sample"]) == {None}
    assert not has_other_weights(model(seed=1), nowhere)
    assert not has_other_weights(model(seed=1).to("meta"), description)
    small = model(seed=1)
    for layer in small:
        layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    assert set(describe_module(small)["sample"]) > {None}


@pytest.mark.parametrize(
    ("here", "site", "words"),
    [
        (model(layers=2), Site("unet.2"), r"1 of its 1 sites are not here, as unet\.2"),
        (model(width=8), WIDE, r"unet\.0 was 12 wide, and here its parameters have 8"),
        (nn.Sequential(*model(), nn.ReLU(), nn.Linear(2, 2)), WIDE, "its sites are here and as wide, and other layers"),
    ],
    ids=["layers", "widths", "elsewhere"],
)
def test_another_architecture_is_refused_in_words(here: nn.Module, site: Site, words: str) -> None:
    learned = concept(model(), site)
    learned.check({"unet": model()})
    sizes = rf"that was Sequential of 468 parameters, this is Sequential of \d+ parameters; {words}"
    refused = rf"another unet than this, that of stabilityai/big .*: {sizes}.* force=True"
    with pytest.raises(DSASError, match=refused) as error:
        learned.check({"unet": here})
    assert "\n" not in str(error.value)
    with pytest.raises(DSASError, match=rf"\): {words}"):
        concept(model(), site, learned_on={}).check({"unet": here})
    learned.check({"unet": here}, force=True)


def test_a_missing_part_is_refused_even_if_forced() -> None:
    with pytest.raises(DSASError, match=r"is of a model that draws, and this is a language model"):
        concept(model()).check({"model": model()}, force=True)
