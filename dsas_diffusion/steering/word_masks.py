"""Cross-attention to the words of a prompt, as a mask of picture patches that a concept's gate is multiplied by.

    A(p) = mean over heads, over the word's tokens and over layers of softmax(Q Kᵀ / √d)
    M(p) = clip((A(p) - q₅₀) / (q₉₅ - q₅₀), 0, 1),    h(p) <- h(p) · M(p)

q₅₀ and q₉₅ are quantiles of A in the same picture (`dsas_diffusion.steering.cross_attention.normalise_attention`;
`benchmarks.quality.localise` compares others). Attention is computed again from the outputs of each cross-attention
layer's own `to_q` and `to_k`, beside whatever kernel the model runs. Every layer counts with its latest attention:
layers before a site with that of this step, layers behind it with that of the step before. Before the first layer of
the first step M is 0: it is not known where the word is, so nothing is changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnsupportedError, did_you_mean
from dsas_core.model.hooks import Call, Visit, visit
from dsas_core.model.sites import Roots, Site

from ..pipelines.batch_layout import BatchLayout
from ..pipelines.generation_watcher import GenerationRequest
from ..pipelines.sites import has_patches
from .cross_attention import attention_to, cross_attention_layers, normalise_attention, on_grid, on_patches

#: concept name -> a word or phrase, or several
Words = Mapping[str, str | Sequence[str]]
#: shares of the patches between whose attention M rises from 0 to 1: IoU with a banana's mask 0.64, of min–max 0.53,
#: of the highest fifth 0.49 (benchmarks/results/localise.json); half of a picture is assumed to be something else
QUANTILES = (0.5, 0.95)


class WordMasks:
    """Masks of picture patches by words of the prompt: a visitor of the denoiser, and the localiser of a steering.

    A word is searched in a prompt token by token, and every occurrence counts: CLIP ignores letter case, "bananas" is
    another word than "banana", and words that the text encoder cuts off do not count. In a prompt without any of a
    concept's words M is 0 and the concept leaves the denoiser unchanged, bit for bit, also where the picture shows the
    thing under another name ("a fruit"); a warning says so when no prompt has one. Rows of the negative prompt, where
    they are steered too, have the mask of their picture.

    Args:
        layout: of the pipeline's batches, with its prompts.
        words: concept name -> words, of concepts that steer patches of the picture; h of others is left unchanged.

    Raises:
        UnsupportedError: no cross-attention; while the model runs, a layer whose keys are not computed by `to_k`.
    """

    def __init__(self, layout: BatchLayout, words: Mapping[str, Sequence[str]]) -> None:
        self.words = words
        self._layout, self._prompts = layout, layout.adapter.tokens[0]
        self._layers = cross_attention_layers(layout.adapter)
        self._texts = {layer.keys.path for layer in self._layers} | {layer.values.path for layer in self._layers}
        self._by_site = {site: i for i, layer in enumerate(self._layers) for site in (layer.queries, layer.keys)}
        self._visit: Visit | None = None
        self._chosen = torch.zeros(0)  # [concepts, pictures, tokens], as the prompts say
        self._queries: dict[int, torch.Tensor] = {}
        self._told = False  # in this generation, that embeddings were replaced
        # These are written in place while the model runs, so that one compiled graph serves all prompts.
        self._tokens = torch.zeros(0)  # [concepts, pictures, tokens]
        self._pictures = torch.zeros(0)  # int64 [pictures]: the row of each that has the prompt
        self._attention = torch.zeros(0)  # [layers, concepts, pictures, height, width]: the latest of each layer
        self._known = torch.zeros(0)  # [layers]: 1 where there is any
        self._mask = torch.zeros(0)  # [concepts, pictures, height, width]

    @property
    def _root(self) -> str:
        return self._layout.adapter.family.denoiser

    def attach(self) -> None:
        """Place hooks at the layers of the pipeline."""
        roots = self._layout.adapter.roots
        self._visit = visit(roots, self._by_site, self, {self._root: self._layout.prompt_call})

    def find_replaced(self, roots: Roots) -> list[Site]:
        """Sites that another module has come to since, see `hooks.Visit.find_replaced`."""
        return [] if self._visit is None else self._visit.find_replaced(roots)

    def detach(self) -> None:
        """Remove every hook. Can be called again."""
        if self._visit is not None:
            self._visit.detach()
            self._visit = None

    def start(self, request: GenerationRequest) -> None:
        """A generation begins: find the words in its prompts.

        Raises:
            UnsupportedError: embeddings were given in place of prompts.
        """
        texts = request.texts
        if texts is None:
            raise UnsupportedError("prompt_embeds were given, in which words cannot be found: pass prompt= instead")
        ids = self._prompts.ids(texts, arguments=request.encode_arguments).tolist()
        chosen = torch.zeros(len(self.words), len(ids), len(ids[0]))
        for mask, (name, words) in zip(chosen, self.words.items(), strict=True):
            for row, prompt_ids in zip(mask, ids, strict=True):
                row[self._prompts.find_words(words, prompt_ids, request.encode_arguments)] = 1
            if not mask.any():
                missing = ", ".join(map(repr, words))
                message = f"no prompt has the word {missing}, so {name!r} leaves the denoiser as it is"
                warnings.warn(message, stacklevel=2)
        counts = chosen.sum(-1, keepdim=True).clamp_min(1)
        self._chosen = (chosen / counts).repeat_interleave(request.images_per_prompt, 1)
        self._queries.clear()
        self._told = False
        if len(self._known):  # of the last generation
            for state in (self._mask, self._known, self._attention):
                state.zero_()

    def _check_keys(self) -> None:
        """Raise where the keys to some queries never came: the concept would do nothing, without notice."""
        if self._queries:
            raise UnsupportedError(
                "the cross-attention does not show its keys, so nobody knows where it looks: call "
                "unfuse_qkv_projections(), or set another attention processor"
            )

    def begin(self, root: str, call: Call) -> None:
        self._check_keys()
        if self._layout.replaced and not self._told:
            self._told = True
            warnings.warn(
                "a callback has handed back other embeddings, and words= looks where the words of the first prompts "
                "were: encode prompts with their words at the same places, or steer without words=",
                stacklevel=2,
            )
        device, grid = call.steered.device, (*self._chosen.shape[:2], *self._layout.latents)
        with torch.inference_mode(False):  # tensors that are written both in and out of inference mode
            if self._mask.shape != grid or self._mask.device != device:
                self._tokens, self._pictures = self._chosen.to(device), call.steered.nonzero().flatten()
                self._attention = torch.zeros(len(self._layers), *grid, device=device)
                self._known = torch.zeros(len(self._layers), device=device)
                self._mask = torch.zeros(grid, device=device)
        self._tokens.copy_(self._chosen)
        self._pictures.copy_(call.steered.nonzero().flatten())

    def visit(self, site: Site, x: torch.Tensor) -> None:
        number = self._by_site[site]
        layer, own = self._layers[number], x.index_select(0, self._pictures.to(x.device))
        if site == layer.queries:
            self._check_keys()
            self._queries[number] = own
            return
        queries = layer.by_head(self._queries.pop(number), "q")
        attention = attention_to(queries, layer.by_head(own, "k"), self._tokens.to(x.device), layer.scale)
        self._attention[number].copy_(on_grid(attention, *self._mask.shape[-2:]))
        self._known[number].fill_(1)
        mean = (self._attention.sum(0) / self._known.sum()).to(self._mask)
        self._mask.copy_(normalise_attention(mean, *QUANTILES))

    def __call__(self, concept: str, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        """M of a concept at a site, float32 [batch, patches, 1]; None where there are no patches, or no words."""
        if concept not in self.words or not has_patches(site, self._root) or site.path in self._texts:
            return None
        index = list(self.words).index(concept)
        mask = on_patches(self._mask[index : index + 1], x.shape[1])[0]
        return mask.repeat(len(x) // len(mask), 1)[..., None].to(x.device)


def check_words(words: Words, concepts: Iterable[Concept], root: str) -> dict[str, tuple[str, ...]]:
    """Check words, and list them by concept name.

    Args:
        words: as they are given to `steer`.
        concepts: those that are steered.
        root: the denoiser's name.

    Raises:
        DSASError: a name that no concept has, or no word.
        UnsupportedError: a concept that does not steer all patches of the picture.

    Example:
        >>> from dsas_core import Intervention, Site, maps, probes
        >>> probe, shift = probes.LinearProbe(torch.ones(4), torch.zeros(())), maps.AffineMap(torch.ones(4))
        >>> concept = Concept("fruit", (Intervention(Site("unet.mid_block"), (probe,), (shift,), (1.0,)),))
        >>> check_words({"fruit": "apple"}, [concept], "unet")
        {'fruit': ('apple',)}
    """
    known = {concept.name: concept for concept in concepts}
    checked = {}
    for name, given in words.items():
        if name not in known:
            raise DSASError(f"words for {name!r}, but steered are {', '.join(known)}{did_you_mean(name, known)}")
        listed = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
        if not listed or not all(isinstance(word, str) and word.strip() for word in listed):
            raise DSASError(f"words of {name!r}: expected a word of the prompt, or a list of them; found {given!r}")
        sites = [site for site in known[name].steered_sites if has_patches(site, root)]
        if not sites:
            raise UnsupportedError(
                f"words of {name!r}: it steers the text alone, which has no patches to choose from; learn it with "
                'sites="denoiser"'
            )
        sliced = [str(site) for site in sites if site.tokens is not None]
        if sliced:
            raise UnsupportedError(
                f"words of {name!r}: {sliced[0]} has but some of the patches, which words cannot mask"
            )
        checked[name] = listed
    return checked
