"""A judge of pictures from plain data, such as a prompt file holds under `judge`.

Functions of one's own are judges too (`CallableJudge`), but no file can name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsas_core.errors import DSASError

from .builtin_judge import BuiltinJudge, ExpectedScene
from .model_judges import ClassifierJudge, ClipJudge
from .picture_judge import PictureJudge

#: what data can ask for: judge -> (keys that it must have, keys that it may have)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "builtin": ((), ("things", "style", "background", "gone")),
    "clip": (("model", "wanted", "other"), ()),
    "classifier": (("model", "label"), ()),
}


def judge_from(spec: Mapping[str, Any], *, device: str = "auto") -> PictureJudge:
    """A judge from plain data, as a YAML file holds it.

    ```yaml
    {builtin: {things: [banana], style: blurred}}            # fields of `Wish`
    {clip: {model: user/name, wanted: a photo of a pear, other: a photo of a fruit}}
    {classifier: {model: user/name, label: banana}}
    ```

    A function of yours is a `CallableJudge`; a file, which may come from anybody, cannot name code to run.

    Args:
        device: of the models; "auto" takes a GPU when there is one.

    Raises:
        DSASError: other data, or a judge that cannot be loaded.
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
