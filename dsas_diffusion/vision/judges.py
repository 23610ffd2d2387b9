"""Judges of pictures from plain data, such as the `judge` of a prompt file.

A function is a judge too (`CallableJudge`), but files cannot name functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsas_core.errors import DSASError

from .builtin_judge import BuiltinJudge, ExpectedScene
from .model_judges import ClassifierJudge, ClipJudge
from .picture_judge import PictureJudge

#: kind of judge -> (required keys, optional keys)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "builtin": ((), ("things", "style", "background", "gone")),
    "clip": (("model", "wanted", "other"), ()),
    "classifier": (("model", "label"), ()),
}


def judge_from(spec: Mapping[str, Any], *, device: str = "auto") -> PictureJudge:
    """A judge from plain data, as a YAML file holds it.

    ```yaml
    {builtin: {things: [banana], style: blurred}}            # fields of `ExpectedScene`
    {clip: {model: user/name, wanted: a photo of a pear, other: a photo of a fruit}}
    {classifier: {model: user/name, label: banana}}
    ```

    A file, which may come from anybody, cannot name code to run; for a function of yours take `CallableJudge`.

    Args:
        spec: one kind of judge and its settings.
        device: of the models; "auto" takes a GPU if there is one.

    Raises:
        DSASError: other data, or a judge that cannot be loaded.

    Example:
        >>> from PIL import Image
        >>> judge = judge_from({"builtin": {"things": ["banana"], "style": "blurred"}})
        >>> judge.target_scores([Image.new("RGB", (128, 128), "white")], ["a banana"]).tolist()
        [0.0]
    """
    if not isinstance(spec, Mapping) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        found = ", ".join(map(str, spec)) or "nothing" if isinstance(spec, Mapping) else repr(spec)
        raise DSASError(f"judge: expected one of {', '.join(KINDS)}, found {found}")
    ((kind, given),) = spec.items()
    needed, more = KINDS[kind]
    if not isinstance(given, Mapping):
        raise DSASError(f"judge {kind}: expected {', '.join([*needed, *more])}, found {given!r}")
    if unknown := [str(key) for key in given if key not in (*needed, *more)]:
        raise DSASError(f"judge {kind}: unknown {', '.join(unknown)}; there is {', '.join([*needed, *more])}")
    if absent := [key for key in needed if key not in given]:
        raise DSASError(f"judge {kind}: {', '.join(absent)} missing")
    for key in needed:
        if not isinstance(given[key], str | int if key == "label" else str):
            raise DSASError(f"judge {kind}: {key} is to be text, found {given[key]!r}")
    if kind == "clip":
        return ClipJudge(**given, device=device)
    if kind == "classifier":
        return ClassifierJudge(**given, device=device)
    return BuiltinJudge(ExpectedScene(**given))
