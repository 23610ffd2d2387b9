"""Tiny random models, built from configs: no network, no weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from dsas_core.llm.builtin import judge
from tests.fixtures import models

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, max_examples=40, derandomize=True, database=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest module starts first, so that no worker is left alone with it in the end."""
    items.sort(key=lambda item: item.path.parts[-2:] != ("builtin", "test_model.py"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_judge() -> Iterator[None]:
    """The built-in judge of rudeness is the same whenever it is fitted: once for each process is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "fit_judge", functools.cache(judge.fit_judge))
        yield


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    """For tests that compile: torch keeps the graphs of earlier ones, and steering has it heed hooks."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def tiny_pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The built-in architecture in miniature."""
    return models.build_flow_pipe(tmp_path_factory.mktemp("flow"))


@pytest.fixture(scope="session")
def ddim_pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Stable Diffusion with another scheduler and attention in more blocks."""
    return models.build_ddim_pipe(tmp_path_factory.mktemp("ddim"))
