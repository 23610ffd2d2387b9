"""Models whose weights are packed in few bits: their sites, and what steers them, are those of the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dsas_core import DSASError, llm
from dsas_core.llm.model.layers import SITE_GROUPS, device_of_input, layers_of
from tests.fixtures.language_models import close, concept_for, tiny, written


class Packed(nn.Module):
    """A linear layer as the libraries of quantisation make it: its weight is bytes, of another shape."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bytes = linear.weight.detach().contiguous().view(torch.uint8).reshape(-1, 1)
        self.shape = tuple(linear.weight.shape)
        self.bias = linear.bias
        self.keep(linear)

    def keep(self, linear: nn.Linear) -> None:
        self.weight = nn.Parameter(self.bytes, requires_grad=False)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.bytes.view(-1).view(torch.float32).view(self.shape), self.bias)


class Buffered(Packed):
    """As GPTQ and AWQ: no parameter at all."""

    def keep(self, linear: nn.Linear) -> None:
        self.register_buffer("qweight", self.bytes.view(-1).view(torch.int32))
        self.register_buffer("scales", torch.ones(1))
        self.in_features, self.out_features = linear.in_features, linear.out_features


class OldBuffered(Packed):
    """As older libraries name it."""

    def keep(self, linear: nn.Linear) -> None:
        self.register_buffer("qweight", self.bytes.view(-1).view(torch.int32))
        self.infeatures, self.outfeatures = linear.in_features, linear.out_features


class Untold(Packed):
    """One that does not tell how wide it is."""

    def keep(self, linear: nn.Linear) -> None:
        self.weight = nn.Parameter(self.bytes, requires_grad=False)


def packed(family: str, kind: type[Packed]) -> Any:
    model = copy.deepcopy(tiny(family))
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, kind(module))
    return model


@pytest.mark.parametrize("kind", [Packed, Buffered, OldBuffered])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_neox", "opt"])
def test_packed_weights_change_neither_sites_nor_what_steers_there(family: str, kind: type[Packed]) -> None:
    whole, model = tiny(family), packed(family, kind)
    assert layers_of(model) == layers_of(whole)
    assert torch.equal(written(model), written(whole))
    for group in SITE_GROUPS:
        try:
            expected = llm.find_sites(whole, group)
        except DSASError:
            continue
        assert llm.find_sites(model, group) == expected, group
    concept = concept_for(whole, "heads")
    with llm.steer(whole, {concept: 1.0}):
        steered = written(whole)
    with llm.steer(model, {concept: 1.0}, force=True):
        assert close(written(model), steered)


def test_a_layer_that_does_not_tell_its_width_has_no_heads() -> None:
    with pytest.raises(DSASError, match=r"Untold does not tell how wide its input is.*choose other sites than heads"):
        llm.find_sites(packed("llama", Untold), "heads")


def test_heads_that_do_not_fill_a_projection_are_refused() -> None:
    model = copy.deepcopy(tiny("llama"))
    model.config.num_attention_heads = 5
    with pytest.raises(DSASError, match=r"takes 32 channels, which are not of 5 heads: choose among .*attention"):
        llm.find_sites(model, "heads")


def test_the_device_of_a_model_without_parameters_is_that_of_its_buffers() -> None:
    model = nn.Module()
    model.register_buffer("qweight", torch.empty(1, device="meta"))
    assert device_of_input(model) == torch.device("cpu"), "nothing tells"
    model.register_buffer("scales", torch.ones(1))
    assert device_of_input(model) == torch.device("cpu")
