"""Sequences of what happens to a steered model: strengths, runs, failures, adapters, dtypes, copies, threads, graphs.

Beside each model lives a twin to which the same happens, but which is steered afresh for every comparison: after
whatever sequence, the model says what its twin says, to the bit, and without steering what a twin says that never was.
"""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsas_core import Concept, llm
from dsas_core.errors import DSASError
from dsas_diffusion import find_sites, steer
from tests.fixtures import language_models, models
from tests.fixtures.concepts import random_concept
from tests.fixtures.visitors import Bare, seen_at
from tests.fuzz.campaign import Budget, check_message, parts, run_machine

STRENGTHS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, [0.0, 1.0], [1.0, -2.0]])
NO_STRENGTHS = st.sampled_from(
    [float("nan"), float("inf"), 1e39, 10**400, "1", None, [], [float("nan"), 0.0], torch.tensor(float("inf")), {}]
)
NAMES = ("one", "two")
#: of so many models one is compiled, which takes seconds
COMPILED = 40


class CallbackError(Exception):
    """What a user's callback raises."""


class Twins(RuleBasedStateMachine):
    """A model and its twin."""

    @initialize(compiled=st.integers(0, COMPILED - 1))
    def begin(self, compiled: int) -> None:
        self.model, self.twin = self.build(), self.build()
        self.bare = [Bare.of(root) for root in self.roots(self.model)]
        self.handle: Any = None
        self.settings: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.undo: dict[str, list[Callable[[], Any]]] = {}
        self.compiles = compiled == 0
        self.changed = False  # by what leaves attributes on modules

    def teardown(self) -> None:
        if getattr(self, "handle", None) is not None:
            self.handle.detach()

    # of a kind of model

    def build(self) -> Any:
        raise NotImplementedError

    def roots(self, model: Any) -> list[torch.nn.Module]:
        raise NotImplementedError

    def concepts(self) -> Mapping[str, Concept]:
        raise NotImplementedError

    def steer(self, model: Any, strengths: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def run(self, model: Any, number: int) -> torch.Tensor:
        raise NotImplementedError

    def fail(self, model: Any) -> None:
        raise NotImplementedError

    # what happens

    def both(self) -> list[Any]:
        return [self.model, self.twin]

    @precondition(lambda self: self.handle is None)
    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True), data=st.data())
    def attach(self, names: list[str], data: st.DataObject) -> None:
        self.given = {name: data.draw(STRENGTHS) for name in names}
        self.settings = data.draw(self.options())
        self.handle = self.steer(self.model, self.given, self.settings)

    def options(self) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(
            {}, optional={"gate": st.sampled_from([None, "on", "off"]), "combine": st.sampled_from(["sum", "blend"])}
        )

    @precondition(lambda self: self.handle is not None)
    @rule(data=st.data(), strength=STRENGTHS)
    def set_strength(self, data: st.DataObject, strength: Any) -> None:
        name = data.draw(st.sampled_from(list(self.given)))
        self.handle.strengths[name] = strength
        self.given[name] = strength

    @precondition(lambda self: self.handle is not None)
    @rule(data=st.data(), strength=NO_STRENGTHS)
    def set_no_strength(self, data: st.DataObject, strength: Any) -> None:
        name = data.draw(st.sampled_from([*self.given, "nobody"]))
        with pytest.raises(DSASError) as caught:
            self.handle.strengths[name] = strength
        check_message(str(caught.value))

    @precondition(lambda self: self.handle is not None)
    @rule(strength=NO_STRENGTHS)
    def attach_badly(self, strength: Any) -> None:
        """An attempt that fails leaves nothing behind, also on a model that is steered."""
        with pytest.raises(DSASError) as caught:
            self.steer(self.model, {"one": strength}, {})
        check_message(str(caught.value))

    @precondition(lambda self: self.handle is not None)
    @rule(times=st.integers(1, 2))
    def detach(self, times: int) -> None:
        for _ in range(times):
            self.handle.detach()
        self.handle, self.given = None, {}

    @precondition(lambda self: self.handle is not None)
    @rule()
    def leave_by_an_error(self) -> None:
        with pytest.raises(CallbackError), self.handle:
            raise CallbackError
        self.handle, self.given = None, {}

    @rule()
    def fail_inside(self) -> None:
        self.fail(self.model)

    @rule(number=st.integers(0, 3))
    def compare(self, number: int) -> None:
        expected = self.expected(number)
        actual = self.run(self.model, number)
        event("steered" if self.given else "unsteered")
        assert torch.equal(actual, expected), f"{self.given} {self.settings} {list(self.undo)}"

    def expected(self, number: int) -> torch.Tensor:
        """What the twin says, steered afresh in the same way."""
        if not self.given:
            return self.run(self.twin, number)
        with self.steer(self.twin, self.given, self.settings):
            return self.run(self.twin, number)

    @precondition(lambda self: self.given)
    @rule(number=st.integers(0, 3))
    def switch_off(self, number: int) -> None:
        for name in self.given:
            self.handle.strengths[name] = 0.0
            self.given[name] = 0.0
        assert torch.equal(self.run(self.model, number), self.run(self.twin, number))

    @rule(dtype=st.sampled_from([torch.bfloat16, torch.float32]))
    def cast(self, dtype: torch.dtype) -> None:
        for model in self.both():
            for root in self.roots(model):
                root.to(dtype)

    @precondition(lambda self: "adapter" not in self.undo and "offload" not in self.undo)
    @rule()
    def add_adapter(self) -> None:
        self.undo["adapter"] = [_add_lora(self.roots(model)[0]) for model in self.both()]
        self.changed = True

    @precondition(lambda self: "offload" not in self.undo)
    @rule()
    def offload(self) -> None:
        from accelerate import cpu_offload
        from accelerate.hooks import remove_hook_from_submodules

        for model in self.both():
            cpu_offload(self.roots(model)[0], torch.device("cpu"))
        self.undo["offload"] = [
            lambda model=model: remove_hook_from_submodules(self.roots(model)[0])  # type: ignore[misc]
            for model in self.both()
        ]
        self.changed = True

    @precondition(lambda self: self.undo)
    @rule(data=st.data())
    def undo_something(self, data: st.DataObject) -> None:
        name = list(self.undo)[-1]
        for undo in self.undo.pop(name):
            undo()

    @precondition(lambda self: not self.undo)
    @rule(number=st.integers(0, 3))
    def copy(self, number: int) -> None:
        """A copy of a steered model is a model of its own, which nobody steers."""
        other = copy.deepcopy(self.model)
        assert torch.equal(self.run(other, number), self.run(self.twin, number))

    @precondition(lambda self: not self.undo)
    @rule(number=st.integers(0, 3), strengths=st.lists(st.sampled_from([0.0, 1.0, -2.0]), min_size=2, max_size=2))
    def run_in_threads(self, number: int, strengths: list[float]) -> None:
        """Each thread has a copy of its own."""
        together, said = threading.Barrier(2), dict[int, torch.Tensor]()
        copies = [copy.deepcopy(self.twin) for _ in strengths]

        def work(i: int) -> None:
            with self.steer(copies[i], {"one": strengths[i]}, {}):
                together.wait()
                said[i] = self.run(copies[i], number)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, strength in enumerate(strengths):
            with self.steer(self.twin, {"one": strength}, {}):
                assert torch.equal(said[i], self.run(self.twin, number))

    @precondition(lambda self: self.compiles and self.handle is not None and not self.undo)
    @rule(number=st.integers(0, 3))
    def compile(self, number: int) -> None:
        """Compiled while it is steered: strengths still count."""
        torch._dynamo.reset()
        expected = self.expected(number)
        roots = self.roots(self.model)
        own = [root.forward for root in roots]
        try:
            with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
                for root in roots:
                    root.compile(backend=models.Counting())
                actual = self.run(self.model, number)
        finally:
            for root in roots:
                root._compiled_call_impl = None
            torch._dynamo.reset()
        assert own == [root.forward for root in roots]
        self.changed = True
        torch.testing.assert_close(actual.float(), expected.float(), rtol=1e-2, atol=1e-2)
        event("compiled")

    @rule()
    def collect(self) -> None:
        gc.collect()

    @invariant()
    def nothing_is_left(self) -> None:
        if getattr(self, "handle", self) is None and not self.changed:
            assert [Bare.of(root) for root in self.roots(self.model)] == self.bare


def _add_lora(root: torch.nn.Module) -> Callable[[], Any]:
    """Give a model low-rank adapters that change what it says; what takes them away again."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    target = "to_q" if any(name.endswith("to_q") for name, _ in root.named_modules()) else "q_proj"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(LoraConfig(r=2, target_modules=[target], init_lora_weights=False), root)
    random = torch.Generator().manual_seed(0)
    for name, weight in sorted(root.named_parameters()):
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=random).mul_(0.1).to(weight.dtype)

    def remove() -> None:
        for name, module in list(root.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, child = name.rpartition(".")
                setattr(root.get_submodule(parent), child, module.get_base_layer())

    return remove


class Texts(Twins):
    """A small language model."""

    def build(self) -> Any:
        return copy.deepcopy(language_models.tiny("llama"))

    def roots(self, model: Any) -> list[torch.nn.Module]:
        return [model]

    @staticmethod
    @cache
    def concepts() -> Mapping[str, Concept]:  # type: ignore[override]
        model = language_models.tiny("llama")
        return {name: language_models.concept_for(model, name=name, seed=i) for i, name in enumerate(NAMES)}

    def steer(self, model: Any, strengths: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # concepts that work against each other
            return llm.steer(model, {self.concepts()[name]: value for name, value in strengths.items()}, **settings)

    def options(self) -> st.SearchStrategy[dict[str, Any]]:
        phases = st.sampled_from(["all", "prompt", "generation"])
        return st.builds(lambda common, phase: {**common, "phase": phase}, super().options(), phases)

    def run(self, model: Any, number: int) -> torch.Tensor:
        """Logits of a forward pass, of one of padded rows, of a generation with samples, or of a loop of one's own."""
        ids = language_models.IDS
        with torch.no_grad():
            if number == 0:
                return model(ids).logits
            if number == 1:
                mask = torch.ones_like(ids)
                mask[0, :3] = 0
                return model(ids, attention_mask=mask).logits
            if number == 2:
                return language_models.written(model, ids, max_new_tokens=3)
            out = model(ids, use_cache=True)
            return model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values).logits

    def fail(self, model: Any) -> None:
        with pytest.raises(IndexError), torch.no_grad():
            model(torch.full((2, 3), 10**6))


class Pictures(Twins):
    """A small pipeline."""

    @staticmethod
    @cache
    def original() -> Any:
        return models.build_ddim_pipe(Path(mkdtemp()), shallow=True)

    def build(self) -> Any:
        return copy.deepcopy(self.original())

    def roots(self, model: Any) -> list[torch.nn.Module]:
        return [model.unet, model.text_encoder]

    @staticmethod
    @cache
    def concepts() -> Mapping[str, Concept]:  # type: ignore[override]
        pipe = Pictures.original()
        kinds = zip(NAMES, ("text", "cross"), strict=True)
        return {
            name: random_concept(seen_at(pipe, find_sites(pipe, kind)), name=name, base=models.bases(pipe), unit=0.3)
            for name, kind in kinds
        }

    def steer(self, model: Any, strengths: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return steer(model, {self.concepts()[name]: value for name, value in strengths.items()}, **settings)

    def options(self) -> st.SearchStrategy[dict[str, Any]]:
        attach, branch = st.sampled_from(["hooks", "processor"]), st.sampled_from(["conditional", "both"])
        return st.builds(
            lambda common, attach, branch, trace: {**common, "attach": attach, "branch": branch, "trace": trace},
            super().options(),
            attach,
            branch,
            st.booleans(),
        )

    def run(self, model: Any, number: int) -> torch.Tensor:
        """Latents of two prompts, with or without guidance, a negative prompt, or a callback that does nothing."""
        options: dict[str, Any] = [
            {},
            {"guidance_scale": 1.0},
            {"negative_prompt": ["a dog", models.BANANA]},
            {"callback_on_step_end": lambda pipe, step, time, tensors: tensors},
        ][number]
        prompts = [models.BANANA, models.DOG]
        return models.latents(model, prompts, (0, 1), num_inference_steps=2, **options)

    def fail(self, model: Any) -> None:
        def raise_it(*_: Any) -> dict[str, Any]:
            raise CallbackError

        with pytest.raises(CallbackError):
            models.latents(model, [models.BANANA] * 2, (0, 1), callback_on_step_end=raise_it)


_TIME = {Texts: Budget(), Pictures: Budget()}


@pytest.mark.parametrize("part", parts(1600))
def test_texts(part: int) -> None:
    run_machine(Texts, part, _TIME[Texts], stateful_step_count=12)


@pytest.mark.parametrize("part", parts(600))
def test_pictures(part: int) -> None:
    run_machine(Pictures, part, _TIME[Pictures], stateful_step_count=8)
