"""The pictures of the demo, without its page: unsteered and steered ones, strips, and what gates read in them."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, ModelMismatchError
from dsas_core.model.loading import reason_of
from dsas_core.steering.trace import Record

from ...builtin.judge import Judge
from ...builtin.scenes import NAMES
from ...drawing.draw import draw_each
from ...drawing.picture_settings import PictureSettings
from ...generation.compare import UNCHANGED, change
from ...generation.pictures import check_negative, latents_of, pictures_of
from ...generation.settings import settings_of
from ...learning.drafting import draft
from ...learning.illustrate import ENDS
from ...pipelines.adapter import PipelineAdapter, adapt
from ...pipelines.families.prompt_templates import plain
from ...pipelines.prompt_check import check_prompt
from ...pipelines.sites import site_name
from ...steering.concept_masks import localises
from ...steering.drawing import generate_batches
from ...steering.preserve import Generation, can_preserve
from ...steering.steer import PipelineSteering, steer
from ...steering.trace import PictureRecord, PictureTrace
from .concepts import conflicting_pairs, gate_of, index_concepts, keep_latest
from .drawing import Drawing, GateReading, Order, Strip

#: unsteered pictures that are kept, so that moving a slider costs one generation
MAX_BASES = 64
#: unsteered passes that are kept, with their latents after every step, so that pictures beside them cost no more
MAX_UNSTEERED = 8
#: bytes of the traces of all drawings; one of a large model has some 100 MB
MAX_TRACE_BYTES = 2**30
#: a model of up to this many bytes is copied for learning, so that others can go on drawing meanwhile
MAX_COPY_BYTES = 2**30
#: a gate counts as open where h is above
OPEN_GATE = 0.5
#: denoising steps of the picture on which an uploaded concept is tried
TRIAL_STEPS = 4
#: seconds after which a file to download may go: Gradio copies it at once
DOWNLOAD_SECONDS = 600
#: letters of a file's name
MAX_NAME = 60


class PictureService:
    """One pipeline that several visitors draw with, one picture at a time.

    Args:
        pipe: a pipeline of a known family.
        model: its name.
        concepts: those that every visitor has.

    Raises:
        DSASError: a concept does not fit the pipeline, or two have one name.
    """

    def __init__(self, pipe: Any, model: str, concepts: Sequence[Concept] = ()) -> None:
        self.pipe, self.model, self.adapter = pipe, model, adapt(pipe)
        self.adapter.check_loaded()
        self.defaults = settings_of(pipe)
        self._turn = threading.Lock()
        self._bases: OrderedDict[Any, tuple[Image.Image, float]] = OrderedDict()
        self._unsteered: OrderedDict[Any, tuple[Generation, PictureTrace]] = OrderedDict()
        self._read: OrderedDict[Any, PictureTrace] = OrderedDict()
        self.can_preserve = can_preserve(self.adapter)
        self._judge: Judge | None = None
        self._files = tempfile.TemporaryDirectory(prefix="dsas-app-")
        self._traces: WeakKeyDictionary[PictureTrace, None] = WeakKeyDictionary()  # oldest first; drawings own them
        self.concepts = index_concepts(concepts, self.adapter.roots)

    def check(self, concept: Concept) -> None:
        """Raise a DSASError where a concept does not fit the pipeline."""
        concept.check(self.adapter.roots)

    def try_concept(self, concept: Concept) -> None:
        """Steer a picture that nobody sees: an uploaded file may name a model whose layers it does not fit.

        Raises:
            DSASError: the concept's probes or maps fail, or give values that are not finite.
        """
        order = Order("a picture", 0, replace(self.defaults, steps=TRIAL_STEPS), gate="on")
        try:
            with self._turn, self._steered(order, {concept: 1.0}):
                latents = latents_of(self.adapter, [order.prompt], [order.seed], order.settings)
        except DSASError:  # one line already
            raise
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = reason_of(error)
            raise ModelMismatchError(f"concept {concept.name!r} does not fit this model's layers: {reason}") from None
        if not bool(latents.isfinite().all()):
            raise DSASError(f"concept {concept.name!r} drives this model beyond all numbers: learn it again")

    def draw(self, order: Order, concepts: Mapping[str, Concept]) -> Iterator[Drawing]:
        """The unsteered picture as soon as it is drawn, and then both.

        Args:
            order: what to draw.
            concepts: by name, those that the order's strengths are of.

        Raises:
            DSASError: the order cannot be drawn, see `steer`.
        """
        strengths = {concepts[name]: strength for name, strength in order.strengths.items() if strength != 0}
        if order.negative is not None:
            check_negative(self.adapter, order.settings)
        unplaced = self.find_unplaced(order, list(strengths))
        preserved = list(strengths) if order.preserve and not unplaced else []
        with self._turn:
            drawing = replace(self._base(order, preserved), unplaced=unplaced)
        if not strengths:
            yield replace(drawing, steered=drawing.base)
            return
        yield drawing
        strengths = {_restrict(concept, order.sites): strength for concept, strength in strengths.items()}
        with self._turn, self._steered(order, strengths) as steering:
            began = time.perf_counter()
            made = self._generate(steering, order, preserved)
            seconds = time.perf_counter() - began
            conflicts = conflicting_pairs(steering)
        trace = steering.trace
        assert trace is not None
        # where no concept is seen no steered pass is run, and the unsteered one tells what gates read
        read = trace if made.is_steered else self._unsteered[_reading_key(order)][1]
        gates = tuple(self._read_gate(order, concept, s, read) for concept, s in strengths.items())
        if not made.is_steered or change([drawing.base], made.images)[0] <= UNCHANGED:
            gates = tuple(self._look_for(gate, drawing.base) for gate in gates)
        results: dict[str, Any] = {
            "steered": made.images[0],
            "seconds": seconds,
            "moved": float(change([drawing.base], made.images)[0]),
            "area": None if made.masks is None else float(made.masks[0].mean()),
            "gates": gates,
            "conflicts": conflicts,
        }
        with self._turn:
            self._keep(trace)
        yield replace(drawing, trace=trace, **results)

    def read_unsteered(self, order: Order, concept: Concept) -> PictureTrace:
        """What a concept's own gate reads in the order's unsteered picture: where it is seen, whatever gate steers."""
        order = replace(order, gate="dsas")
        key = _reading_key(order)
        made, trace = self._unsteered.get(key, (None, None))
        if made is not None and trace is not None and made.looked_for([concept]) and trace.select(concept.name):
            return trace
        at = key, concept.name, concept.digest
        if at not in self._read or not self._read[at].records:
            with self._turn, self._steered(order, {concept: 0.0}) as steering:
                self._generate(steering, order, ())
                assert steering.trace is not None
                keep_latest(self._read, at, steering.trace, MAX_UNSTEERED)
                self._keep(steering.trace)
        return self._read[at]

    def strip(
        self, order: Order, concept: Concept, strengths: Sequence[float], on_picture: Callable[[int], object] = int
    ) -> Strip:
        """The order's picture at each strength of one concept; `on_picture` is called with the number drawn so far."""
        pictures: list[Image.Image] = []
        preserved = [concept] if order.preserve and not self.find_unplaced(order, [concept]) else []
        for strength in strengths:
            with self._turn:
                if preserved:
                    self._base(order, preserved)
                with self._steered(order, {_restrict(concept, order.sites): strength}) as steering:
                    pictures += self._generate(steering, order, preserved).images
            on_picture(len(pictures))
        return Strip(concept.name, order.prompt, tuple(strengths), tuple(pictures))

    def draw_row(self, row: Sequence[PictureSettings], concepts: Mapping[str, Concept]) -> list[Image.Image]:
        """Pictures by their settings, while nobody else draws; concepts by name."""
        with self._turn:
            return [made.images[0] for made, _ in draw_each(self.adapter, row, concepts)]

    def draft_prompts(self, source: str, target: str, name: str | None) -> dict[str, Any]:
        """What `dsas_diffusion.draft` makes of two phrases; it runs the text encoder, while nothing is drawn."""
        with self._turn:
            return draft(self.pipe, source, target, name)

    def pipeline_for_learning(self) -> tuple[Any, threading.Lock]:
        """A pipeline to learn on, a copy where the model is small, and the lock to hold meanwhile."""
        size = sum(p.numel() * p.element_size() for root in self.adapter.roots.values() for p in root.parameters())
        if size > MAX_COPY_BYTES:
            return self.pipe, self._turn
        with self._turn:
            return copy.deepcopy(self.pipe), threading.Lock()

    def write_download(self, name: str, content: bytes) -> str:
        """Write a file that visitors download; it goes when another is written long after, or the service closes.

        Args:
            name: of the file; characters that do not belong into names of files become "_".
            content: what is in it.

        Returns:
            Its path.
        """
        for old in Path(self._files.name).iterdir():
            with suppress(OSError):  # another visitor's may have removed it just now
                if old.stat().st_mtime < time.time() - DOWNLOAD_SECONDS:
                    shutil.rmtree(old)
        path = Path(tempfile.mkdtemp(dir=self._files.name)) / re.sub(r"[^\w.+-]+", "_", name)[-MAX_NAME:]
        path.write_bytes(content)
        return str(path)

    def close(self) -> None:
        """Remove all files to download."""
        self._files.cleanup()

    def find_unplaced(self, order: Order, concepts: Sequence[Concept]) -> tuple[str, ...]:
        """The names of concepts because of which an order's wish to keep the rest of the picture cannot be met."""
        if not order.preserve:
            return ()
        return tuple(c.name for c in concepts if not (self.can_preserve and localises(c)))

    def _base(self, order: Order, preserved: Sequence[Concept]) -> Drawing:
        """The picture without steering, from memory where it was drawn before.

        Args:
            order: what to draw.
            preserved: concepts outside of which it is to be kept: what that takes is drawn at once.
        """
        key, reading = _key_of(order), _reading_key(order)
        base, recorded = self._bases.get(key), self._unsteered.get(reading)
        missing = recorded is None or not recorded[0].looked_for(preserved) or not recorded[1].records
        cached = base is not None and not (preserved and missing)
        if base is None or not cached:
            began = time.perf_counter()
            if preserved:
                with self._steered(order, dict.fromkeys(preserved, 0.0)) as steering:
                    made = self._generate(steering, order, preserved)
                assert steering.trace is not None
                keep_latest(self._unsteered, reading, (made, steering.trace), MAX_UNSTEERED)
                self._keep(steering.trace)
                picture = made.images[0]
            else:
                arguments = [order.prompt], [order.seed], order.settings
                picture = pictures_of(self.adapter, *arguments, negative=order.negative)[0]
            base = picture, time.perf_counter() - began
        keep_latest(self._bases, key, base, MAX_BASES)
        return Drawing(order, check_prompt(self.adapter, order.prompt), *base, cached)

    def _generate(self, steering: PipelineSteering, order: Order, preserved: Sequence[Concept]) -> Generation:
        """The order's picture, whatever the steering is set to; beside its unsteered pass, where that is kept."""
        kept, _ = self._unsteered.get(_reading_key(order), (None, None)) if preserved else (None, None)
        earlier = [kept] if kept is not None and kept.looked_for(preserved) else []
        arguments = [order.prompt], [order.seed], order.settings
        options: dict[str, Any] = {"preserve": bool(preserved), "unsteered": earlier, "negative": order.negative}
        (made,) = generate_batches(steering, *arguments, **options)
        return made

    def _keep(self, newest: PictureTrace) -> None:
        """Keep a trace, and empty the oldest ones where those of all drawings are too large."""
        self._traces[newest] = None
        size = _bytes(newest)
        for older in list(self._traces)[-2::-1]:
            size += _bytes(older)
            if size > MAX_TRACE_BYTES:
                older.clear()

    def _steered(self, order: Order, concepts: Mapping[Concept, float]) -> PipelineSteering:
        settings: dict[str, Any] = {name: getattr(order, name) for name in ("branch", "combine", "schedule")}
        return steer(self.pipe, dict(concepts), gate=gate_of(order), trace=True, **settings)

    def _read_gate(self, order: Order, concept: Concept, strength: float, trace: PictureTrace) -> GateReading:
        sites = concept.steered_sites
        records = [record for record in trace.select(concept.name) if record.site in sites]
        h = trace.mean_h(concept.name, sites=sites), trace.highest_h(concept.name, sites=sites)
        return GateReading(concept.name, strength, *h, _open_words(self.adapter, order.prompt, records))

    def _look_for(self, gate: GateReading, picture: Image.Image) -> GateReading:
        """Which things among the words that opened a gate an unsteered picture shows; known of the built-in model."""
        things = [word for word in gate.words if word in NAMES]
        if not self.adapter.is_builtin or not things:
            return gate
        if self._judge is None:
            self._judge = Judge.load()
        seen = self._judge.look([picture])[0].things
        absent, drawn = (tuple(word for word in things if (word in seen) is there) for there in (False, True))
        return replace(gate, absent=absent, drawn=drawn)


def _open_words(adapter: PipelineAdapter, prompt: str, records: Sequence[Record]) -> tuple[str, ...]:
    """Words of the prompt at which a gate in the first text encoder or the embeddings was open, in their order.

    Empty where the pipeline puts a template around the prompt: which position is which word is not known there.
    """
    tokens = adapter.tokens[0]
    h = [record.h for record in records if record.timestep is None and record.site.root == tokens.encoder.part]
    of_embeddings = [record for record in records if record.site.argument and isinstance(record, PictureRecord)]
    h += [record.pictures for record in of_embeddings if record.pictures is not None]
    if not h or tokens.encoder.prompt_template is not plain:
        return ()
    is_open = torch.stack([(values > OPEN_GATE).any(0) for values in h if values.shape[1] == h[0].shape[1]]).any(0)
    ids, tokenizer = tokens.ids([prompt], len(is_open))[0], tokens.tokenizer
    special = set(tokenizer.all_special_ids)
    words = [str(tokenizer.decode([int(i)])).strip() for i in ids[is_open] if int(i) not in special]
    return tuple(dict.fromkeys(filter(None, words)))


def _key_of(order: Order) -> tuple[Any, ...]:
    """What an unsteered picture depends on."""
    return order.prompt, order.negative, order.seed, order.settings


def _reading_key(order: Order) -> tuple[Any, ...]:
    """What probes that read an unsteered picture depend on: in which rows, and whether they do."""
    return *_key_of(order), order.gate, order.branch


def slider_ends(concept: Concept, step: float = 0.05) -> tuple[float, float]:
    """The ends of a concept's slider, on its steps: of its range, or -1 and 2 where it is not calibrated."""
    low, high = concept.range or ENDS
    return float(np.floor(min(low, 0.0) / step) * step), float(np.ceil(max(high, 0.0) / step) * step)


def steered_sites(concepts: Sequence[Concept]) -> list[str]:
    """The sites that concepts steer, by `site_name`."""
    return list(dict.fromkeys(site_name(site) for concept in concepts for site in concept.steered_sites))


def _bytes(trace: PictureTrace) -> int:
    return sum(part.nbytes for record in list(trace.records) for part in (record.h, record.change, record.cosine))


def _restrict(concept: Concept, sites: Sequence[str]) -> Concept:
    """The concept, steering at these sites only and reading at its others; at all of them where none is given."""
    if not sites:
        return concept
    interventions = (item if site_name(item.site) in sites else item.as_read_only() for item in concept.interventions)
    return replace(concept, interventions=tuple(interventions))
