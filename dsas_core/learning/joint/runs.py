"""What a domain gives joint training: its prompts, to be run through the model with a visitor at the sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...errors import UnsupportedError
from ...model.compilation import is_compiled
from ...model.hooks import Call, visit
from ...model.sites import Roots, Site
from .visitor import JointVisitor

#: what is before the names of sides whose prompts are held out
HELD_OUT = "held-out "
#: attributes of layers that can compute their activations again: whether, and by which function
_AGAIN, _FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"
#: a kind of prompt, and the index of one among them
Row = tuple[str, int]


class JointRuns(ABC):
    """The prompts of a concept, run through the model as often as training needs them.

    Args:
        counts: kind -> number of prompts; kinds are source, target and control, and these behind `HELD_OUT`.
        moments: how many timesteps there are to choose from; 1 where the model has none.
    """

    def __init__(self, counts: Mapping[str, int], moments: int = 1) -> None:
        self.counts, self.moments = counts, moments
        self._visitor: JointVisitor | None = None
        self._call: Call | None = None

    @property
    @abstractmethod
    def roots(self) -> Roots:
        """The model's root modules by name."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The model whose layers may compute their activations again."""

    @abstractmethod
    def _prepare(self, rows: Sequence[Row], moment: int) -> tuple[Call, torch.Tensor | None]:
        """What is known of a call of some prompts, and how much each position counts in the mean of its row."""

    @abstractmethod
    def _run(self) -> None:
        """Call the model with the prompts that were prepared, as far as the last site."""

    def groups(self, rows: Sequence[Row], moment: int) -> list[list[int]]:
        """The places of prompts that one call of the model can have, in order, group by group."""
        return [list(range(len(rows)))]

    def length(self, row: Row) -> int:
        """How many positions a prompt has, where prompts differ in it: by the longest memory is planned."""
        return 1

    def run(self, rows: Sequence[Row], moment: int) -> None:
        """Run prompts of one group at once, as far as the last site."""
        assert self._visitor is not None
        self._call, self._visitor.counted = self._prepare(rows, moment)
        self._run()

    @contextmanager
    def placed(self, sites: Sequence[Site], visitor: JointVisitor) -> Iterator[None]:
        """Let a visitor see the sites in all runs of the block."""
        self._visitor = visitor
        with visit(self.roots, sites, visitor, dict.fromkeys(self.roots, self._describe)):
            yield

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Compute activations again in the backward passes of the block."""
        with checkpointed(self.module):
            if self._visitor is not None:
                self._visitor.stopper.active = False
            yield

    def _describe(self, args: object, kwargs: object) -> Call:
        assert self._call is not None
        return self._call


def check_trainable(roots: Roots) -> None:
    """Raise an UnsupportedError where no gradient passes a model: compiled, or its weights packed as integers."""
    for name, root in roots.items():
        if is_compiled(root):
            raise UnsupportedError(
                f"{name} is compiled, and joint training changes what its hooks do: train the model as it was loaded, "
                "and compile it afterwards"
            )
        packed = next((path for path, part in _tensors(root) if _is_packed(part)), None)
        if packed is not None:
            raise UnsupportedError(
                f"joint training needs a model with weights in floating point, and {name}.{packed} is packed as "
                "integers: load it in bfloat16 or float32, and steer the quantised one with the concept"
            )


def _tensors(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()


def _is_packed(part: torch.Tensor) -> bool:
    """Whether a tensor is a matrix of packed weights: masks are of booleans, and indices of 64 bits."""
    if isinstance(part, nn.Parameter):
        return not part.is_floating_point()
    return part.ndim >= 2 and not part.is_floating_point() and part.dtype not in (torch.bool, torch.int64)


@contextmanager
def frozen(roots: Roots) -> Iterator[None]:
    """A model that is computed as in use and takes no gradient, until the block ends; then all is as it was."""
    modules = [module for root in roots.values() for module in root.modules()]
    training = [module for module in modules if module.training]
    # by name: where weights are offloaded, every call puts other parameters in their places
    wanted = [
        (part, name) for part in modules for name, x in part._parameters.items() if x is not None and x.requires_grad
    ]
    try:
        _set(training, wanted, False)
        yield
    finally:
        _set(training, wanted, True)


def _set(training: Sequence[nn.Module], wanted: Sequence[tuple[nn.Module, str]], value: bool) -> None:
    for module in training:
        module.training = value  # of itself alone, whatever its children are in
    for module, name in wanted:
        parameter = module._parameters[name]
        if parameter is not None:
            parameter.requires_grad_(value)


@contextmanager
def checkpointed(module: nn.Module) -> Iterator[None]:
    """A model of transformers or diffusers that computes activations again in the backward passes of the block.

    By the attributes that its layers go by: their own ways of turning it on leave a hook on the embeddings.

    Raises:
        UnsupportedError: one that cannot.
    """
    parts = [part for part in module.modules() if hasattr(part, "gradient_checkpointing")]
    if not parts:
        raise UnsupportedError(
            f"{type(module).__name__} cannot compute activations again: train with a smaller batch (training batch)"
        )
    own = (_AGAIN, _FUNCTION, "training")
    before = [(part, {name: part.__dict__[name] for name in own if name in part.__dict__}) for part in parts]
    try:
        for part in parts:
            part.__dict__.update({_AGAIN: True, _FUNCTION: partial(_compute_again, part)})
            part.__dict__["training"] |= not any(
                hasattr(inner, _AGAIN) for inner in part.modules() if inner is not part
            )
        yield
    finally:
        for part, held in before:
            for name in own:
                part.__dict__.pop(name, None)
            part.__dict__.update(held)


def _compute_again(part: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a layer's function gives, computed again in the backward pass.

    Layers of transformers ask whether they are in training before they come here; their dropout must not hear of it.
    """
    asked = part.training

    def quiet(*args: Any, **kwargs: Any) -> Any:
        part.training = False
        try:
            return function(*args, **kwargs)
        finally:
            part.training = asked

    return checkpoint(quiet, *args, use_reentrant=False, **kwargs)
