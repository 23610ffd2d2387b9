"""Joint training on a tiny language model: what is learned, and what is left of it on the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from dsas_core import Concept, DSASError, llm
from dsas_core.errors import ArtifactError
from dsas_core.llm.learning.joint_runs import TextRuns
from dsas_core.maps import AffineMap, TwoWayMap
from dsas_core.methods.gates.dsas import WHOLE_TEXT_FORMS
from dsas_core.probes import LinearProbe, RectifiedProbe
from tests.fixtures.language_models import PROMPTS, Words, tiny

SETTINGS: dict[str, Any] = {"count": 16, "sites": "block"}
QUICK = {"training": {"steps": 6, "checks": 2}}


def learn(model: Any, tokenizer: Words, method: str, gate: str | None = None, **more: Any) -> Concept:
    recipe = {**QUICK, **more.pop("recipe", {})}
    return llm.learn(model, tokenizer, PROMPTS, method=method, gate=gate, recipe=recipe, **{**SETTINGS, **more})


@pytest.mark.parametrize(
    ("method", "gate", "map_", "probe"),
    [
        ("lineas", None, TwoWayMap, None),
        ("lineas", "on", TwoWayMap, None),
        ("e2e-dsas", None, AffineMap, LinearProbe),
        ("e2e-dsas", "e2e-dsas(activation=relu)", AffineMap, RectifiedProbe),
        ("caa", "e2e-dsas", AffineMap, LinearProbe),
        ("lineas", "e2e-dsas", TwoWayMap, LinearProbe),
        ("e2e-dsas", "dsas", AffineMap, None),
    ],
)
def test_what_trains_is_learned(
    method: str, gate: str | None, map_: type, probe: type | None, tokenizer: Words, tmp_path: Path
) -> None:
    """Gate and map together, and each with others."""
    model = copy.deepcopy(tiny("llama"))
    before = {name: part.clone() for name, part in model.state_dict().items()}
    asked = [part.requires_grad for part in model.parameters()]
    concept = learn(model, tokenizer, method, gate)
    assert concept.method == method
    assert concept.gate == (gate or ("dsas" if method == "lineas" else method))
    assert {type(part) for item in concept.interventions for part in item.maps} == {map_}
    x = torch.randn(3, 32)
    assert not any(torch.equal(part.apply(x, 1.0), x) for item in concept.interventions for part in item.maps)
    if probe is not None:
        assert {type(part) for item in concept.interventions for part in item.probes} == {probe}
    trained = concept.evidence["training"]
    assert trained["steps"] == 6
    assert trained["memory"] > 0
    assert [entry["step"] for entry in trained["history"]] == [0, 3, 6]
    assert Concept.from_pretrained(concept.save_pretrained(tmp_path / "it")) == concept
    assert all(torch.equal(before[name], part) for name, part in model.state_dict().items())
    assert all(part.grad is None for part in model.parameters())
    assert asked == [part.requires_grad for part in model.parameters()]
    assert not any(part._forward_hooks or part.training for part in model.modules())


def test_a_method_that_is_fitted_can_be_trained(tokenizer: Words) -> None:
    """Mode joint trains the map that the closed form begins."""
    fitted = llm.learn(tiny("llama"), tokenizer, PROMPTS, recipe={"form": "token"}, **SETTINGS)
    trained = learn(tiny("llama"), tokenizer, "caa", recipe={"mode": "joint", "form": "token"})
    for one, two in zip(fitted.interventions, trained.interventions, strict=True):
        assert one.maps[0].slope is None
        assert two.maps[0].slope is None
        assert not torch.equal(one.maps[0].shift, two.maps[0].shift)
        assert torch.cosine_similarity(one.maps[0].shift, two.maps[0].shift, dim=0) > 0.9
    with pytest.raises(
        DSASError, match="mode joint trains affine maps, dimension by dimension, and this is a Projection"
    ):
        learn(tiny("llama"), tokenizer, "casteer", recipe={"mode": "joint"})


def test_a_map_that_is_made_of_its_own_gate_is_so_beside_a_trained_one(tokenizer: Words) -> None:
    """That of mera, whichever gate is in use."""
    given = {"form": "token", "site_weight": "none", "options": {"alpha": 0.5}}
    fitted = llm.learn(tiny("llama"), tokenizer, PROMPTS, method="mera", gate="dsas", recipe=given, **SETTINGS)
    trained = learn(tiny("llama"), tokenizer, "mera", "e2e-dsas", recipe=given)
    for one, two in zip(fitted.interventions, trained.interventions, strict=True):
        torch.testing.assert_close(one.maps[0].direction, two.maps[0].direction, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(one.maps[0].offset, two.maps[0].offset, atol=1e-3, rtol=1e-3)


def test_the_offline_gate_of_a_whole_text_goes_with_a_trained_map(tokenizer: Words) -> None:
    """It reads a site that is not steered, which takes no part in the training."""
    concept = learn(tiny("llama"), tokenizer, "lineas", sites=["layers.1"])
    assert concept.provenance["recipe"]["form"] in WHOLE_TEXT_FORMS
    assert {str(item.site).rsplit(".", 1)[-1] for item in concept.interventions} == {"1"}
    assert list(concept.evidence["training"]["moved_dimensions"]) == [str(concept.interventions[0].site)]


def test_layers_that_are_computed_again_train_the_same(tokenizer: Words) -> None:
    trained = []
    for again in (False, True):
        training = {"training": {"steps": 4, "checks": 2, "checkpointing": again}}
        trained.append(learn(tiny("llama"), tokenizer, "e2e-dsas", recipe=training))
    model = tiny("llama")
    assert not any(part._forward_hooks or part._forward_pre_hooks or part.training for part in model.modules())
    assert not any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    one, two = trained
    assert (one.evidence["training"]["checkpointing"], two.evidence["training"]["checkpointing"]) == (False, True)
    for item, other in zip(one.interventions, two.interventions, strict=True):
        torch.testing.assert_close(item.maps[0].shift, other.maps[0].shift, atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(item.probes[0].weight, other.probes[0].weight, atol=1e-4, rtol=1e-2)


def test_a_base_in_bfloat16_has_parameters_in_float32(tokenizer: Words) -> None:
    model = copy.deepcopy(tiny("llama")).to(torch.bfloat16)
    concept = learn(model, tokenizer, "lineas", recipe={"site_weight": "none"})
    assert {part.dtype for item in concept.interventions for part in item.maps[0].tensors()} == {torch.float32}
    losses = [entry["held_out"] for entry in concept.evidence["training"]["history"]]
    assert losses[-1] < losses[0]


def test_it_goes_on_from_a_folder(tokenizer: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learn(tiny("llama"), tokenizer, "lineas")
    passes, run = [0], TextRuns.run

    def stopping(self: TextRuns, *args: Any) -> None:
        passes[0] += 1
        if passes[0] == 11:
            raise KeyboardInterrupt
        run(self, *args)

    monkeypatch.setattr(TextRuns, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        learn(tiny("llama"), tokenizer, "lineas", checkpoint=tmp_path / "training")
    assert (tmp_path / "training" / "training.safetensors").is_file()
    monkeypatch.setattr(TextRuns, "run", run)
    again = learn(tiny("llama"), tokenizer, "lineas", checkpoint=tmp_path / "training")
    assert again.interventions[0].maps[0].tensors()[0].equal(whole.interventions[0].maps[0].tensors()[0])
    with pytest.raises(ArtifactError, match=r"is of another training \(recipe\)"):
        learn(tiny("llama"), tokenizer, "e2e-dsas", checkpoint=tmp_path / "training")


def test_a_model_that_is_offloaded_trains_the_same(tokenizer: Words) -> None:
    """accelerate puts other parameters in place in every call; what asks for gradients is as before in the end."""
    kept, offloaded = copy.deepcopy(tiny("llama")), copy.deepcopy(tiny("llama"))
    next(offloaded.parameters()).requires_grad_(False)
    asked = {name: part.requires_grad for name, part in offloaded.named_parameters()}
    accelerate.cpu_offload(offloaded, torch.device("cpu"))
    assert {part.device.type for part in offloaded.parameters()} == {"meta"}
    one, two = (learn(model, tokenizer, "e2e-dsas") for model in (kept, offloaded))
    for item, other in zip(one.interventions, two.interventions, strict=True):
        torch.testing.assert_close(item.maps[0].shift, other.maps[0].shift)
    assert {name: part.requires_grad for name, part in offloaded.named_parameters()} == asked


def test_it_trains_where_no_gradients_are_wanted(tokenizer: Words) -> None:
    with torch.inference_mode():
        concept = learn(tiny("llama"), tokenizer, "e2e-dsas")
    other = learn(tiny("llama"), tokenizer, "e2e-dsas")
    for item, part in zip(concept.interventions, other.interventions, strict=True):
        assert torch.equal(item.maps[0].shift, part.maps[0].shift)


def test_a_training_that_is_kept_and_none_is_refused(tokenizer: Words, tmp_path: Path) -> None:
    with pytest.raises(DSASError, match="checkpoint keeps a training, and method caa with gate dsas is not trained"):
        llm.learn(tiny("llama"), tokenizer, PROMPTS, method="caa", checkpoint=tmp_path, **SETTINGS)
