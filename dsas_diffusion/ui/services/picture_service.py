"""What the demo draws, without the page: base and steered pictures, strips, and what the gates saw."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, ModelMismatchError
from dsas_core.steering.trace import Record

from ...generation.compare import change
from ...generation.pictures import decode, latents_of
from ...generation.settings import settings_of
from ...learning.illustrate import ENDS
from ...pipelines.adapter import adapt
from ...pipelines.families.prompt_templates import plain
from ...pipelines.prompt_check import check_prompt
from ...pipelines.sites import site_name
from ...steering.steer import PipelineSteering, steer
from ...steering.trace import PictureTrace
from .concepts import by_name, gate_of, keep_latest, opposed
from .drawing import Drawing, GateReading, Order, Strip

#: base pictures that are kept, so that moving a slider costs one generation
KEPT = 64
#: bytes of the traces that are kept of all drawings; of a large model, one has some 100 MB
TRACED = 2**30
#: a model up to this many bytes is copied for learning, so that others can go on drawing meanwhile
COPIED = 2**30
#: where h is above, a gate is open
OPEN = 0.5
#: denoising steps in which a concept from elsewhere is tried
TRIED = 4
#: seconds in which a file is fetched: Gradio copies it as soon as it is told of
FETCHED = 600
#: letters of a file's name
MOST_NAME = 60


class PictureService:
    """One pipeline that several people draw with, one picture at a time.

    Args:
        pipe: a pipeline of a known family. model: what to call it.
        concepts: those that everybody has.

    Raises:
        DSASError: a concept that does not fit the pipeline, or two of one name.
    """

    def __init__(self, pipe: Any, model: str, concepts: Sequence[Concept] = ()) -> None:
        self.pipe, self.model, self.adapter = pipe, model, adapt(pipe)
        self.adapter.check_loaded()
        self.usual = settings_of(pipe)
        self._turn = threading.Lock()
        self._bases: OrderedDict[Any, tuple[Image.Image, float]] = OrderedDict()
        self._files = tempfile.TemporaryDirectory(prefix="dsas-app-")
        self._traces: list[weakref.ref[PictureTrace]] = []  # oldest first; drawings hold them
        self.concepts = by_name(concepts, self.adapter.roots)

    def check(self, concept: Concept) -> None:
        """Raise a DSASError where a concept does not fit the pipeline."""
        concept.check(self.adapter.roots)

    def try_out(self, concept: Concept) -> None:
        """Steer a picture that nobody sees: files may claim a model whose layers they do not fit.

        Raises:
            DSASError: its probes or maps fail there, or give what is no number.
        """
        order = Order("a picture", 0, replace(self.usual, steps=TRIED), gate="on")
        try:
            with self._turn, self._steered(order, {concept: 1.0}):
                latents = latents_of(self.adapter, [order.prompt], [order.seed], order.settings)
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ModelMismatchError(f"concept {concept.name!r} does not fit this model's layers: {reason}") from None
        if not bool(latents.isfinite().all()):
            raise DSASError(f"concept {concept.name!r} drives this model beyond all numbers: learn it again")

    def draw(self, order: Order, concepts: Mapping[str, Concept]) -> Iterator[Drawing]:
        """The base picture, as soon as it is there, and then both.

        Args:
            concepts: by name, those that the strengths are of.

        Raises:
            DSASError: what was asked for cannot be drawn, see `steer`.
        """
        chosen = {concepts[name]: strength for name, strength in order.strengths.items() if strength != 0}
        with self._turn:
            drawing = self._base(order)
        if not chosen:
            yield replace(drawing, steered=drawing.base)
            return
        yield drawing
        wanted = {_only(concept, order.sites): strength for concept, strength in chosen.items()}
        with self._turn, self._steered(order, wanted) as steering:
            began = time.perf_counter()
            steered = self._picture(order)
            seconds = time.perf_counter() - began
            conflicts = opposed(steering)
        trace = steering.trace
        assert trace is not None
        complete = replace(
            drawing,
            steered=steered,
            seconds=seconds,
            moved=float(change([drawing.base], [steered])[0]),
            gates=tuple(self._read(order, concept, strength, trace) for concept, strength in wanted.items()),
            opposed=conflicts,
            trace=trace,
        )
        with self._turn:
            self._keep(trace)
        yield complete

    def strip(
        self, order: Order, concept: Concept, strengths: Sequence[float], on_picture: Callable[[int], object] = int
    ) -> Strip:
        """The order's picture at each strength of one concept; `on_picture` is told how many there are."""
        pictures = []
        for strength in strengths:
            with self._turn, self._steered(order, {_only(concept, order.sites): strength}):
                pictures.append(self._picture(order))
            on_picture(len(pictures))
        return Strip(concept.name, order.prompt, tuple(strengths), tuple(pictures))

    def apart(self) -> tuple[Any, threading.Lock]:
        """A pipeline to learn with, a copy where the model is small enough, and the lock to hold meanwhile."""
        size = sum(p.numel() * p.element_size() for root in self.adapter.roots.values() for p in root.parameters())
        if size > COPIED:
            return self.pipe, self._turn
        with self._turn:
            return copy.deepcopy(self.pipe), threading.Lock()

    def file(self, name: str, content: bytes) -> str:
        """The path of a new file to download; it is gone when another is made long after, or the studio closes.

        Args:
            name: of the file; what names of files had better not have becomes "_".
        """
        for old in Path(self._files.name).iterdir():
            with suppress(OSError):  # another visitor's may have removed it just now
                if old.stat().st_mtime < time.time() - FETCHED:
                    shutil.rmtree(old)
        path = Path(tempfile.mkdtemp(dir=self._files.name)) / re.sub(r"[^\w.+-]+", "_", name)[-MOST_NAME:]
        path.write_bytes(content)
        return str(path)

    def close(self) -> None:
        """Remove what was written."""
        self._files.cleanup()

    def _base(self, order: Order) -> Drawing:
        """The picture without steering, from memory where it has been drawn before."""
        key = (order.prompt, order.seed, order.settings)
        cached = key in self._bases
        if not cached:
            began = time.perf_counter()
            picture = self._picture(order)
            keep_latest(self._bases, key, (picture, time.perf_counter() - began), KEPT)
        self._bases.move_to_end(key)
        picture, seconds = self._bases[key]
        return Drawing(order, check_prompt(self.adapter, order.prompt), picture, seconds, cached)

    def _keep(self, trace: PictureTrace) -> None:
        """Empty the oldest traces, where visitors' drawings hold more than is kept of all."""
        kept = [*filter(None, (reference() for reference in self._traces)), trace]
        self._traces = [weakref.ref(trace) for trace in kept]
        total = sum(map(_bytes, kept))
        for oldest in kept[:-1]:
            if total <= TRACED:
                break
            total -= _bytes(oldest)
            oldest.clear()

    def _picture(self, order: Order) -> Image.Image:
        return decode(self.adapter, latents_of(self.adapter, [order.prompt], [order.seed], order.settings))[0]

    def _steered(self, order: Order, concepts: Mapping[Concept, float]) -> PipelineSteering:
        return steer(
            self.pipe,
            dict(concepts),
            gate=gate_of(order),
            branch=order.branch,
            combine=order.combine,
            schedule=order.schedule,
            trace=True,
        )

    def _read(self, order: Order, concept: Concept, strength: float, trace: PictureTrace) -> GateReading:
        sites = concept.steered_sites
        return GateReading(
            concept.name,
            strength,
            trace.mean_h(concept.name, sites=sites),
            trace.highest_h(concept.name, sites=sites),
            self._words(order.prompt, [record for record in trace.select(concept.name) if record.site in sites]),
        )

    def _words(self, prompt: str, records: Sequence[Record]) -> tuple[str, ...]:
        """Words of the prompt at which a gate in the first text encoder opened, in their order.

        Empty where the pipeline words the prompt in its own way for it, so that nobody knows which position is whose.
        """
        tokens = self.adapter.tokens[0]
        h = [record.h for record in records if record.timestep is None and record.site.root == tokens.encoder.part]
        if not h or tokens.encoder.prompt_template is not plain:
            return ()
        opened = torch.stack([(each > OPEN).any(0) for each in h if each.shape[1] == h[0].shape[1]]).any(0)
        ids, tokenizer = tokens.ids([prompt], len(opened))[0], tokens.tokenizer
        special = set(tokenizer.all_special_ids)
        words = [str(tokenizer.decode([int(i)])).strip() for i in ids[opened] if int(i) not in special]
        return tuple(dict.fromkeys(word for word in words if word))


def ends_of(concept: Concept, step: float = 0.05) -> tuple[float, float]:
    """The ends of a concept's slider, on its steps: of its range, or -1 and 2 where nobody has calibrated it."""
    low, high = concept.range or ENDS
    return float(np.floor(min(low, 0.0) / step) * step), float(np.ceil(max(high, 0.0) / step) * step)


def steered_sites(concepts: Sequence[Concept]) -> list[str]:
    """Where concepts steer, by the names that people use."""
    return list(dict.fromkeys(site_name(site) for concept in concepts for site in concept.steered_sites))


def _bytes(trace: PictureTrace) -> int:
    return sum(part.nbytes for record in list(trace.records) for part in (record.h, record.change, record.cosine))


def _only(concept: Concept, sites: Sequence[str]) -> Concept:
    """A concept that steers at some sites alone and watches the others."""
    if not sites:
        return concept
    kept = (item if site_name(item.site) in sites else item.as_read_only() for item in concept.interventions)
    return replace(concept, interventions=tuple(kept))
