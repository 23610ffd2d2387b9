"""Every architecture of transformers that writes text is steered as plain hooks would, or refused in one line.

Each is tiny and random, from its config. The plain hooks know nothing of caches: they go by the length of each call.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from dsas_core import Concept, Intervention, Site, llm, visit
from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.llm.learning.reader import Reader
from dsas_core.llm.model.conversations import Encoded
from dsas_core.llm.model.layers import roots_of
from dsas_core.maps import AffineMap
from dsas_core.model.sites import modules
from dsas_core.probes import ConstantProbe, LinearProbe
from tests.fixtures.architectures import build, causal_kinds, seeing_kinds
from tests.fixtures.visitors import Bare, Recorder
from tests.fuzz.campaign import check_message

pytestmark = pytest.mark.slow

#: at least so many architectures are to be steered, and be steered or refused
STEERED, TRIED = 110, 110
IDS = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
PADS, LENGTH = 3, 4
#: architectures that are refused, and what the refusal says
REFUSED = {
    "cpmant": "39 positions reach model.cpmant.encoder.layers.1, but 'model' was called with 7",
    "prophetnet": "21 positions reach model.prophetnet.decoder.layers.1, but 'model' was called with 7",
    "rwkv": "2 positions reach model.rwkv.blocks.1, but 'model' was called with 1",
    "xlm": "reads the whole text anew for each token",
    "xlnet": "writes with a second stream of queries",
}


def written(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of every token that greedy decoding writes after the prompt, [rows, LENGTH, vocabulary]."""
    mask = torch.ones_like(ids) if mask is None else mask
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=LENGTH,
        min_new_tokens=LENGTH,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return torch.stack(out.logits, 1)


def forward(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of one forward pass without a cache, [rows, positions, vocabulary]."""
    mask = torch.ones_like(ids) if mask is None else mask
    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=2e-3, atol=2e-3)


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts behind padding, and their mask."""
    pads = torch.zeros(len(IDS), PADS, dtype=torch.long)
    return torch.cat([pads, IDS], 1), torch.cat([pads, torch.ones_like(IDS)], 1)


@contextmanager
def plain_hooks(model: Any, concept: Concept, phase: str) -> Iterator[None]:
    """What `llm.steer` is to do, with hooks of its own, for texts without padding."""
    known = modules(roots_of(model))
    steered: dict[str, torch.Tensor] = {}

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        positions = torch.arange(ids.shape[1])
        if ids.shape[1] > 1:  # the whole text so far: its first token is the sink
            writes = positions >= IDS.shape[1] - 1
            steered["here"] = (positions > 0) & (writes if phase == "generation" else True)
        else:
            steered["here"] = positions == 0

    def hook_of(item: Intervention) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            x = given = output if isinstance(output, torch.Tensor) else output[0]
            if x.ndim == 4:  # streams of the residual, behind the positions or before the rows
                x = x.movedim(0, 2) if x.shape[2] == len(steered["here"]) else x
                x = x.flatten(2)
            h = item.probes[0].score(x) * steered["here"][:, None]
            x = torch.lerp(x, item.maps[0].apply(x, 1.0), h.to(x).expand_as(x))
            if given.ndim == 4:
                x = x.unflatten(2, (-1, given.shape[-1]))
                x = x if x.shape == given.shape else x.movedim(2, 0)
            make = getattr(type(output), "_make", type(output))
            return x if isinstance(output, torch.Tensor) else make([x, *output[1:]])

        return hook

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    for item in concept.interventions:
        handles.append(known[item.site.path].register_forward_hook(hook_of(item)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def concepts_at(seen: dict[Site, torch.Tensor]) -> dict[str, Concept]:
    """A concept that is always on, and one whose gate goes by token."""
    random = torch.Generator().manual_seed(1)
    items: dict[str, list[Intervention]] = {"on": [], "token": []}
    for site, x in seen.items():
        width, scale = x.shape[-1], float(x.std())
        shift = AffineMap(torch.randn(width, generator=random) * scale)
        weight = torch.randn(width, generator=random) / (scale * width**0.5)
        for name, probe in (("on", ConstantProbe(1.0)), ("token", LinearProbe(weight, torch.tensor(0.2)))):
            items[name].append(Intervention(site, (probe,), (shift,), (1.0,)))
    return {name: Concept(name, tuple(parts)) for name, parts in items.items()}


def seen_at(model: Any, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
    """What comes by at some sites, which learning reads as well."""
    capture = Reader(model, 0, 2).capture([Encoded(tuple(row), 7) for row in IDS.tolist()], sites, [("source", "all")])
    assert all(len(rows.gathered("positions")) for rows in capture.rows.values())
    recorder = Recorder()
    with visit(roots_of(model), sites, recorder):
        forward(model)
    assert set(recorder.seen) == set(sites), "every site is reached"
    assert all(x.shape[:2] == IDS.shape for seen in recorder.seen.values() for x in seen), "each token has its place"
    return {site: seen[0] for site, seen in recorder.seen.items()}


def check_steering(model: Any) -> None:
    """The identities of steering, as far as the model itself keeps them; and that it is what plain hooks do."""
    base, plain = written(model), forward(model)
    assert torch.equal(written(model), base), "the model itself repeats what it does"
    bare, sites = Bare.of(model), llm.find_sites(model)
    config = model.config.get_text_config(decoder=True)
    layers = {getattr(config, name, None) for name in ("num_hidden_layers", "num_layers", "num_layers_per_stack")}
    assert len(llm.find_sites(model, "block")) in layers, "the layers are those of the config"
    concepts = concepts_at(seen_at(model, sites))
    if close(forward(model, torch.cat([IDS, base[:, :-1].argmax(-1)], 1))[:, IDS.shape[1] - 1 :], base):
        check_answers_read_with_a_cache(model)
    with llm.steer(model, dict.fromkeys(concepts.values(), 0.0)):
        assert torch.equal(written(model), base), "strength 0 changes nothing that is written"
        assert torch.equal(forward(model), plain), "nor what is read"
    for concept in concepts.values():
        for phase in ("all", "generation"):
            with plain_hooks(model, concept, phase):
                wanted = written(model), forward(model)
            with llm.steer(model, {concept: 1.0}, phase=phase):
                assert close(forward(model), wanted[1]), f"one pass is steered as by plain hooks, {phase}"
                steered = written(model)
            assert not close(steered, base), "what is written changes"
            assert close(steered, wanted[0]), f"what is written is steered as by plain hooks, {phase}"
            check_batches(model, concept, phase, base, steered)
    assert torch.equal(written(model), base), "detached, it writes as before"
    assert torch.equal(forward(model), plain), "and reads as before"
    assert Bare.of(model) == bare, "and carries no hooks"


def check_answers_read_with_a_cache(model: Any) -> None:
    """Learning tries answers behind the cache of their prompts, which changes nothing, or says that there is none."""
    reader, texts = Reader(model, 0, 2), [Encoded(tuple(row), 4) for row in IDS.tolist()]
    try:
        cached = reader.predictions(texts, written=True)
    except UnsupportedError as error:
        assert "keeps no cache of what it has read" in str(error)  # noqa: PT017
        return
    assert all(map(close, cached, reader.predictions(texts)))


def check_batches(model: Any, concept: Concept, phase: str, base: torch.Tensor, steered: torch.Tensor) -> None:
    """Padding on the left, rows alone and decoding without a cache, where the model itself agrees on them."""
    ids, mask = padded()
    answer = base[:, :-1].argmax(-1)
    whole = torch.cat([IDS, answer], 1)

    def steering() -> Any:
        return llm.steer(model, {concept: 1.0}, phase=phase) if concept is not None else nullcontext()

    if close(written(model, ids, mask), base):
        with steering():
            assert close(written(model, ids, mask), steered), f"padding on the left makes no difference, {phase}"
    if close(written(model, IDS[:1]), base[:1]):
        with steering():
            assert close(written(model, IDS[:1]), steered[:1]), f"nor does the other row, {phase}"
    if close(forward(model, whole)[:, IDS.shape[1] - 1 :], base) and phase == "all":
        whole = torch.cat([IDS, steered[:, :-1].argmax(-1)], 1)
        with steering():
            assert close(forward(model, whole)[:, IDS.shape[1] - 1 :], steered), "nor does the cache"


@pytest.mark.parametrize("kind", causal_kinds() + seeing_kinds())
@torch.no_grad()
def test_it_is_steered_right_or_refused_in_one_line(kind: str) -> None:
    model, refused = build(kind), None
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "attached sites were not reached")
            check_steering(model)
    except DSASError as error:
        refused = str(error)
    finally:
        logging.disable(logging.NOTSET)
    assert (refused is None) == (kind not in REFUSED), refused or "it is steered after all"
    if refused is not None:
        check_message(refused)
        assert REFUSED[kind] in refused


def test_so_many_are_tried() -> None:
    tried = set(causal_kinds())
    assert len(tried) >= TRIED
    assert len(tried - set(REFUSED)) >= STEERED
