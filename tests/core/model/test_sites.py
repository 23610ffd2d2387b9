"""Sites: names, finding, reading and writing."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.utils import ModelOutput

from dsas_core import DSASError, Site
from dsas_core.model.sites import Joint, canonical_path, find, modules, read_site, write_site


class Wrapped(nn.Module):
    """A level that library versions or compilation put in between."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


def tower() -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"attn": nn.Linear(2, 2)}) for _ in range(3))})


def test_find_by_regular_expression_matches_whole_paths() -> None:
    roots = {"model": tower()}
    assert find(roots, r"model\.layers\.\d+") == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert find(roots, r"model\.layers\.[02]\.attn") == ["model.layers.0.attn", "model.layers.2.attn"]


def test_find_by_suffix_matches_whole_names() -> None:
    roots = {"model": tower()}
    assert find(roots, ["attn"]) == [f"model.layers.{i}.attn" for i in range(3)]
    assert find(roots, ["layers.1.attn", "layers.0"]) == ["model.layers.0", "model.layers.1.attn"]
    with pytest.raises(DSASError, match="no site matches 'ttn'"):
        find(roots, ["ttn"])


def test_what_is_not_found_lists_what_exists() -> None:
    with pytest.raises(DSASError, match=r"no site matches 'attn9'.*model\.layers\.N\.attn"):
        find({"model": tower()}, "attn9")
    with pytest.raises(DSASError, match="is not a regular expression"):
        find({"model": tower()}, "(")


@pytest.mark.parametrize("level", ["_orig_mod", "text_model"])
def test_names_leave_out_wrappers(level: str) -> None:
    inner = tower()
    assert canonical_path(f"text_encoder.{level}.encoder.layers.0") == "text_encoder.encoder.layers.0"
    known = modules({"model": Wrapped(level, inner)})
    assert known.keys() == modules({"model": inner}).keys()
    assert known["model"] is inner
    assert known["model.layers.1.attn"] is inner["layers"][1]["attn"]


@pytest.mark.parametrize("wrap", ["tensor", "tuple", "list", "output", "mapping"])
@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize(
    ("tokens", "channels"), [(None, None), ((1, 3), None), (None, (0, 2)), ((-2, None), (1, None))], ids=str
)
def test_what_is_written_is_read_again_and_the_rest_stays(wrap: str, layout: str, tokens: Any, channels: Any) -> None:
    whole = torch.randn(2, 4, 3) if layout == "last" else torch.randn(2, 3, 2, 2)
    other = torch.randn(2, 7)
    value, index = {
        "tensor": (whole, 0),
        "tuple": ((other, whole), 1),
        "list": ([whole, other], 0),
        "output": (ModelOutput(first=other, second=whole), 1),
        "mapping": ({"first": whole, "second": other}, 0),
    }[wrap]
    site = Site("model", index=index, tokens=tokens, channels=channels, layout=layout)
    before = whole.clone()
    x = read_site(value, site)
    positions, width = slice(*tokens or (None,)), slice(*channels or (None,))
    flat = whole if layout == "last" else whole.flatten(2).transpose(1, 2)
    assert torch.equal(x, flat[:, positions, width])

    new = torch.randn_like(x)
    written = write_site(value, site, new)
    assert type(written) is type(value)
    assert torch.equal(read_site(written, site), new)
    assert torch.equal(whole, before), "nothing is changed in place"
    everything = Site("model", index=index, layout=layout)
    left = torch.ones_like(flat, dtype=torch.bool)
    left[:, positions, width] = False
    assert torch.equal(read_site(written, everything)[left], flat[left])
    if wrap != "tensor":
        kept = list(written.values()) if hasattr(written, "values") else list(written)
        assert kept[1 - index] is other


@given(batch=st.integers(1, 3), width=st.integers(1, 4), height=st.integers(1, 4), across=st.integers(1, 4))
def test_the_first_layout_keeps_pixels_in_place(batch: int, width: int, height: int, across: int) -> None:
    value = torch.randn(batch, width, height, across)
    site = Site("model", layout="first")
    x = read_site(value, site)
    assert x.shape == (batch, height * across, width)
    assert torch.equal(x[0, -1], value[0, :, -1, -1])
    assert torch.equal(write_site(value, site, x), value)


@pytest.mark.parametrize(
    ("value", "layout", "message"),
    [
        (torch.zeros(2, 3), "last", r"expects 3 dimensions, its module gave \(2, 3\)"),
        (torch.zeros(2, 3, 4, 5), "last", "layout last expects 3"),
        (torch.zeros(2, 3, 4), "first", "layout first expects 4"),
        ((None, torch.zeros(2, 3, 4)), "last", "gave NoneType"),
        ((), "last", "without an element 0"),
        ("text", "last", "gave str"),
    ],
)
def test_a_wrong_shape_says_what_came(value: Any, layout: str, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        read_site(value, Site("model.here", layout=layout))


@pytest.mark.parametrize(
    "site",
    [Site("unet.mid"), Site("unet.mid", side="input", index=1, tokens=(1, None), channels=(None, 4), layout="first")],
    ids=str,
)
def test_plain_data_and_back(site: Site) -> None:
    assert Site.from_dict(site.to_dict()) == site
    as_json = {key: list(value) if isinstance(value, tuple) else value for key, value in site.to_dict().items()}
    assert Site.from_dict(as_json) == site


def test_plain_data_leaves_defaults_out() -> None:
    assert Site("unet.mid").to_dict() == {"path": "unet.mid"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"path": "a", "colour": 1}, "has no field colour"),
        ({"path": "a", "side": "left"}, "side is input or output"),
        ({"path": "a", "layout": "middle"}, "layout one of last, first"),
    ],
)
def test_bad_plain_data(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        Site.from_dict(data)


#: how both streams lie, and what each of two rows holds: patches, tokens, and padding where there is some
SEQUENCES = {
    "text, image": (Joint(3, 2), ["ttiii", "ttiii"]),
    "image, text": (Joint(3, 2, text_first=False), ["iiitt", "iiitt"]),
    "text with padding, image": (Joint(3, 4, text_lengths=torch.tensor([2, 4])), ["tt--iii", "ttttiii"]),
    "tokens, image": (Joint(3, 4, text_lengths=torch.tensor([2, 4]), text_padding_last=True), ["ttiii--", "ttttiii"]),
    "image with padding, text": (
        Joint(3, 4, text_first=False, padded_image=5, text_lengths=torch.tensor([1, 3])),
        ["iii--t---", "iii--ttt-"],
    ),
}


@pytest.mark.parametrize("stream", ["image", "text"])
@pytest.mark.parametrize("lie", SEQUENCES)
def test_streams_of_a_joint_sequence(lie: str, stream: str) -> None:
    """Each row's own positions are read, in order, and nothing else is written but padding that does not count."""
    joint, rows = SEQUENCES[lie]
    whole = torch.arange(2.0 * len(rows[0])).view(2, -1, 1)
    site = Site("model", stream=stream)
    x = read_site(whole, site, joint)
    mask = joint.token_mask(x.shape[1]) if stream == "text" else None
    mask = torch.ones(x.shape[:2]) if mask is None else mask
    ours = torch.tensor([[letter == stream[0] for letter in row] for row in rows])
    for row in range(2):
        assert x[row, :, 0][mask[row] > 0].tolist() == whole[row, :, 0][ours[row]].tolist()
    written = write_site(whole, site, torch.where(mask[..., None] > 0, -1.0, x), joint)
    assert torch.equal(written[..., 0], torch.where(ours, -1.0, whole[..., 0]))


def test_a_joint_sequence_that_does_not_fit_is_told() -> None:
    with pytest.raises(DSASError, match="7 positions, expected 3 of the picture, 2 of the prompt, or both"):
        read_site(torch.zeros(1, 7, 2), Site("model", stream="image"), Joint(3, 2))
    with pytest.raises(DSASError, match="call the whole pipeline"):
        read_site(torch.zeros(1, 5, 2), Site("model", stream="image"))


class Pair(NamedTuple):
    """What a module gives, as some do."""

    first: str
    second: torch.Tensor


@given(st.permutations(["batch", "positions", "streams"]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_streams_of_the_residual_are_one_activation(order: list[str], rows: int, positions: int, streams: int) -> None:
    """Each token's streams come side by side, are written where they were read, and other orders are refused."""
    layout = {("batch", "positions", "streams"): "streams-last", ("streams", "batch", "positions"): "streams-first"}
    site = Site("model.0", index=1, layout=layout.get(tuple(order), "last"))
    sizes = {"batch": rows, "positions": positions, "streams": streams}
    whole = torch.randn(*(sizes[name] for name in order), 5)
    if site.layout == "last":
        with pytest.raises(DSASError, match=r"layout last expects 3 dimensions, its module gave .*: name sites"):
            read_site(whole, site)
        return
    x = read_site(Pair("kept", whole), site)
    assert x.shape == (rows, positions, streams * 5)
    at = {"batch": rows - 1, "positions": positions - 1, "streams": 0}
    assert torch.equal(x[-1, -1, :5], whole[tuple(at[name] for name in order)])
    assert torch.equal(write_site(whole, site, x), whole)
    changed = write_site(Pair("kept", whole), site, 2 * x + 1)
    assert isinstance(changed, Pair)
    assert (changed.first, torch.equal(changed.second, 2 * whole + 1)) == ("kept", True)
    half = Site("model.0", layout=site.layout, channels=(0, 5))
    assert torch.equal(read_site(write_site(whole, half, x[..., :5] + 1), site)[..., 5:], x[..., 5:])
