"""What a forward pass of a language model is given: tokens, cache, positions and masks, whatever the keywords are.

A cache is an argument that holds what was read before: an object that tells its length, one that is known by name, or
any other object that holds tensors. What does not tell how much it holds has no length here, rather than length 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import UnsupportedError, quote

#: names of caches that do not tell their length: transformers' `ALL_CACHE_NAMES`, and older ones
CACHE_NAMES = frozenset(
    ("past_key_values", "past_key_value", "cache_params", "state", "mems", "past_buckets_states", "layer_past", "past")
)
#: names of the places where the texts of a packed row begin, and its end
_CUMULATIVE = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seq_lens", "cu_seqlens")
#: types of arguments that hold nothing of what was read before
_PLAIN = frozenset((type(None), bool, int, float, str, torch.Tensor, torch.device, torch.dtype))
#: how deep a cache is searched for tensors
_DEPTH = 4


@dataclass(frozen=True)
class CallInputs:
    """The arguments of one forward pass.

    Args:
        arguments: by the names of the forward's parameters.
        ids: int64 [batch, positions], or None where embeddings are given.
        given: the ids, or the embeddings [batch, positions, width].
        cache: what holds earlier positions; None without.

    Attributes:
        batch: number of rows.
        count: number of positions.
    """

    arguments: Mapping[str, Any]
    ids: torch.Tensor | None
    given: torch.Tensor
    cache: Any

    @property
    def batch(self) -> int:
        return self.given.shape[0]

    @property
    def count(self) -> int:
        return self.given.shape[1]

    @property
    def asked(self) -> int | None:
        """Of how many last positions the logits are asked for, by `logits_to_keep`; None where it does not say."""
        kept = self.arguments.get("logits_to_keep")
        return kept if type(kept) is int and 0 < kept <= self.count else None

    def past_told(self) -> int:
        """Number of earlier positions, by `cache_position` or by a mask of more positions than the call has."""
        at = self.arguments.get("cache_position")
        if isinstance(at, torch.Tensor) and at.numel():
            return int(at.flatten()[0])
        mask = self.arguments.get("attention_mask")
        wider = isinstance(mask, torch.Tensor) and mask.ndim == 2
        return max(0, mask.shape[1] - self.count) if wider else 0  # type: ignore[union-attr]


def parameter_names(module: nn.Module) -> list[str]:
    """Names of the parameters of a module's forward that can be given by position, in order.

    Example:
        >>> parameter_names(nn.Linear(1, 1))
        ['input']
    """
    parameters = inspect.signature(module.forward).parameters.values()
    return [part.name for part in parameters if part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)]


def read_inputs(
    names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], is_known: Callable[[Any], bool]
) -> CallInputs:
    """The arguments of a forward pass, by name.

    Args:
        names: `parameter_names` of the module.
        args: positional arguments.
        kwargs: keyword arguments.
        is_known: whether a list, tuple or mapping is a cache that the model has returned.

    Raises:
        UnsupportedError: neither ids nor embeddings, or two caches.

    Example:
        >>> read_inputs(["input_ids"], (torch.zeros(1, 3),), {}, lambda value: False).count
        3
    """
    arguments = {**dict(zip(names, args, strict=False)), **kwargs} if args else kwargs
    ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
    given = ids if ids is not None and (embeds is None or ids.shape[1]) else embeds
    if given is None:
        raise UnsupportedError("the model was called without input_ids and inputs_embeds: pass one of them")
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if (
            type(value) not in _PLAIN
            and _is_cache(name, value, is_known)
            and all(value is not other for other in found.values())
        ):
            found[name] = value
    if len(found) > 1:
        raise UnsupportedError(
            f"the model was called with {' and '.join(found)}, and each holds earlier positions: pass one cache"
        )
    return CallInputs(arguments, None if given is embeds else ids, given, next(iter(found.values()), None))


def _is_cache(name: str, value: Any, is_known: Callable[[Any], bool]) -> bool:
    if hasattr(value, "get_seq_length"):
        return True
    if isinstance(value, torch.Tensor):  # of a class of its own
        return False
    if isinstance(value, list | tuple | Mapping):
        return (name in CACHE_NAMES or is_known(value)) and next(tensors_in(value), None) is not None
    return name in CACHE_NAMES or (name != "attention_mask" and next(tensors_in(value), None) is not None)


def tensors_in(value: Any, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    """The tensors in lists, tuples, mappings and the attributes of objects, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(part, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, type | nn.Module) and not callable(value):
        yield from tensors_in(vars(value), depth - 1)


def cache_length(cache: Any) -> int | None:
    """Number of positions that a cache holds; None where it does not tell.

    Example:
        >>> keys = torch.zeros(1, 4, 7, 8)  # [batch, heads, positions, width]
        >>> cache_length(((keys, keys),))
        7
    """
    if isinstance(cache, list | tuple):  # of layers, as in old transformers: ((keys, values), …)
        first = cache[0][0] if isinstance(cache[0], list | tuple) and cache[0] else None
        return first.shape[-2] if isinstance(first, torch.Tensor) and first.ndim == 4 else None
    try:
        return int(cache.get_seq_length())
    except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError):  # no layer of it counts positions
        offset = getattr(cache, "seqlen_offset", None)
        return offset if isinstance(offset, int) else None


def is_filled(cache: Any) -> bool:
    """Whether a cache without a length holds anything."""
    filled = getattr(cache, "has_previous_state", None)
    try:
        filled = filled() if callable(filled) else filled
    except ValueError:  # no such layer
        filled = None
    return filled if isinstance(filled, bool) else any(bool(part.any()) for part in tensors_in(cache))


def newest_keys(cache: Any, length: int) -> torch.Tensor | None:
    """What a cache of `length` tokens has of the newest one of each row, [rows, …]; None where it shows none.

    It is of the last layer, and so depends on the whole row: its key, or what its convolution or state holds.
    """
    if isinstance(cache, list | tuple):
        last = cache[-1][0] if isinstance(cache[-1], list | tuple) and cache[-1] else cache[0]
        if not isinstance(last, torch.Tensor) or last.ndim not in (3, 4):
            return None
        return last[:, :, -1] if last.ndim == 4 else last[..., -1]
    cache = getattr(cache, "self_attention_cache", cache)
    for layer in reversed(getattr(cache, "layers", [])):
        keys, states = getattr(layer, "keys", None), getattr(layer, "conv_states", None)
        if isinstance(keys, torch.Tensor):
            # a full sliding window has dropped the first keys
            if keys.ndim == 4 and keys.numel():
                return keys[:, :, min(length, keys.shape[2]) - 1]
            packed = next(tensors_in(getattr(layer, "_quantized_keys", None)), None)
            return packed[:, :, -1].float() if packed is not None and packed.ndim == 4 else None
        held = next(tensors_in(states), None)
        if held is not None:
            return held[..., -1]
    return None


def handle_of(cache: Any) -> Any:
    """The object that a cache is recognised by, which weak references can point to: itself, or its last tensor."""
    if not isinstance(cache, list | tuple | dict):
        return cache
    handle = None
    for handle in tensors_in(cache):  # noqa: B007
        pass
    return handle


def returned_cache(output: Any) -> Any:
    """The cache in what a forward pass returned; None without one."""
    if isinstance(output, dict):
        for name, part in output.items():
            if part is not None and (name in CACHE_NAMES or hasattr(part, "get_seq_length")):
                return part
        return None
    for part in output if isinstance(output, tuple) else ():
        of_layers = isinstance(part, tuple) and part and isinstance(part[0], tuple)
        if hasattr(part, "get_seq_length") or isinstance(part, list) or of_layers:
            return part
    return None


def real_positions(mask: Any, batch: int, count: int, past: int, device: torch.device) -> torch.Tensor:
    """Positions up to the end of a call that are no padding, bool [batch, past + count].

    Args:
        mask: the call's attention mask.
        batch: number of rows.
        count: number of positions of the call.
        past: number of positions before.
        device: of the result.

    Raises:
        UnsupportedError: a mask that does not tell it.
    """
    length = past + count
    if isinstance(mask, dict):  # one mask per kind of attention: the full one has every real token
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < count:
        found = f"of shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else quote(type(mask).__name__)
        raise UnsupportedError(
            f"the attention mask {found} does not tell which of {length} positions are padding: pass one of "
            f"[{batch}, {length}], 1 for tokens"
        )
    if mask.ndim == 4:  # [batch, 1, queries, keys]: keys that some query attends to
        mask = _visible(mask).any(1)
    real = mask.to(device).bool()
    if real.shape[1] < length:  # the mask of this call's tokens alone
        before = torch.ones(len(real), length - real.shape[1], dtype=torch.bool, device=device)
        real = torch.cat([before, real], 1)
    return real[:, :length].expand(batch, -1)


def _visible(mask: torch.Tensor) -> torch.Tensor:
    """Which keys each query attends to, bool [batch, queries, keys], by a mask [batch, heads, queries, keys]."""
    visible = mask[:, 0]
    return visible if visible.dtype == torch.bool else visible >= 0


@dataclass(frozen=True)
class Packed:
    """Several texts in one row.

    Args:
        counted: bool [batch, positions], False for the first token of each text, and for padding.
        prompt: bool [batch, positions], True in parts of several tokens, and in first tokens.
        writing: bool [batch, positions], where the next token is asked for; None where that is not told.
    """

    counted: torch.Tensor
    prompt: torch.Tensor
    writing: torch.Tensor | None


def has_lengths(inputs: CallInputs) -> bool:
    """Whether cumulative lengths say which texts a row holds, as those of continuous batching."""
    return any(isinstance(inputs.arguments.get(name), torch.Tensor) for name in _CUMULATIVE)


def read_packed(inputs: CallInputs, real: torch.Tensor | None, past: int) -> Packed | None:
    """The texts of rows that hold several; None where each row is one.

    They are told by cumulative lengths, by positions that begin again, or by masks that keep texts apart.

    Args:
        inputs: of the call.
        real: bool [batch, positions], the positions of the call that are no padding; None for all.
        past: number of earlier positions that a cache holds.

    Raises:
        UnsupportedError: rows that are packed in a way that does not tell where texts begin.
    """
    ends = next((given for name in _CUMULATIVE if (given := inputs.arguments.get(name)) is not None), None)
    if ends is None and inputs.count == 1:
        return None
    device, places = inputs.given.device, _positions(inputs)
    shape = inputs.batch, inputs.count
    real = torch.ones(shape, dtype=torch.bool, device=device) if real is None else real
    begins = torch.zeros(shape, dtype=torch.bool, device=device)
    if ends is not None:
        if len(ends) == 2 and inputs.cache is None and (places is None or not bool(places[:, 0].any())):
            return None  # one text
        edges = ends.flatten().to(device).long()
        begins[:, edges[:-1].clamp_max(inputs.count - 1)] = True
        real = real & (torch.arange(inputs.count, device=device) < edges[-1])
        if places is None and inputs.cache is not None:
            raise UnsupportedError("a row of several texts continues a cache: pass position_ids, which tell where")
    else:
        _mark_begins(begins, inputs, real, places)
        if not bool(begins.any()):
            return None
        if past:
            raise UnsupportedError(
                "positions begin again within a row that continues a cache, which does not tell what follows what "
                "(a tree of drafts?): pass each text in a row of its own"
            )
        begins |= real & (real.cumsum(1) == 1)
    first = begins if places is None or ends is None else begins & (places == 0)
    number = begins.long().cumsum(1)  # of the part of a text that a position is in
    sizes = torch.zeros(inputs.batch, inputs.count + 1, dtype=torch.long, device=device)
    several = sizes.scatter_add_(1, number, real.long()).gather(1, number) > 1
    asked, writing = inputs.arguments.get("logits_indices"), None
    if isinstance(asked, torch.Tensor):
        writing = torch.zeros_like(begins)
        writing[:, asked.to(device).long()] = True
    return Packed(real & ~first, several | first, writing)


def virtual_tokens(model: nn.Module) -> tuple[int, bool]:
    """How many tokens of its own an adapter of PEFT puts before each text, and whether it puts them into the cache.

    Example:
        >>> virtual_tokens(nn.Identity())
        (0, False)
    """
    config = getattr(getattr(model, "_orig_mod", model), "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return 0, False
    return int(config.num_virtual_tokens), "PREFIX" in str(config.peft_type) or "CARTRIDGE" in str(config.peft_type)


def _mark_begins(begins: torch.Tensor, inputs: CallInputs, real: torch.Tensor, places: torch.Tensor | None) -> None:
    """Mark where positions begin again, or masks keep a token from the one before it."""
    both = real[:, 1:] & real[:, :-1]
    if places is not None:
        step = places.diff(dim=1)
        again = both & (step < 0 if inputs.arguments["position_ids"].ndim == 3 else step <= 0)
        if bool((again & (places[:, 1:] > 0)).any()):
            raise UnsupportedError(
                "positions repeat or go back within a row, but not to 0: pass attention_mask where there is padding, "
                "and positions from 0 for each text of a row"
            )
        begins[:, 1:] |= again
    apart = _held_apart(inputs)
    if apart is not None:
        begins[:, 1:] |= both & apart


def _positions(inputs: CallInputs) -> torch.Tensor | None:
    """Positions by `position_ids`, int64 [batch, positions]; None where they are not given, or of another form."""
    places = inputs.arguments.get("position_ids")
    if not isinstance(places, torch.Tensor) or places.shape[-1] != inputs.count:
        return None
    if places.ndim == 3 and places.shape[0] in (3, 4):  # of text and pictures: [kinds, batch, positions]
        places = places[0]
    if places.ndim == 1:
        places = places[None]
    fits = places.ndim == 2 and len(places) in (1, inputs.batch)
    return places.to(inputs.given.device).expand(inputs.batch, -1) if fits else None


def _held_apart(inputs: CallInputs) -> torch.Tensor | None:
    """Where a token does not attend to the one before it, bool [batch or 1, positions - 1]; None where all do."""
    device, count = inputs.given.device, inputs.count
    numbers, mask = inputs.arguments.get("seq_idx"), inputs.arguments.get("attention_mask")
    if isinstance(numbers, torch.Tensor) and numbers.shape[-1] == count:
        return numbers.to(device).diff(dim=-1) != 0
    if not isinstance(mask, torch.Tensor) or mask.shape[-1] != count:
        return None
    if mask.ndim == 4 and mask.shape[2] == count:
        return ~_visible(mask).to(device).diagonal(-1, 1, 2)
    # 1 for the tokens of the first text, 2 for those of the second
    several = mask.ndim == 2 and mask.dtype in (torch.int32, torch.int64) and bool((mask > 1).any())
    return mask.to(device).diff(dim=1) != 0 if several else None


def first_position(inputs: CallInputs, real: torch.Tensor) -> int:
    """The lowest of the rows' first positions, by `position_ids`; 0 where they are not given or of several kinds."""
    places = _positions(inputs)
    if places is None or inputs.arguments["position_ids"].ndim == 3:
        return 0
    first = real & (real.cumsum(1) == 1)
    return int(torch.where(first, places, 0).sum(1).min())
