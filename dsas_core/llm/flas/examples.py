"""Files of examples of many concepts, YAML: the text of a concept -> prompts, each with an answer that shows it.

talk like a pirate:
  - [where is my parcel?, "arr, it be at sea, matey!"]
  - prompt: who are you?
    answer: i be the captain of this desk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import PromptError, quote
from ...utils.reading.plain_yaml import parse_yaml
from ...utils.reading.text_files import decode, read_bytes

#: most bytes of a file, and what it may hold
MOST_BYTES, MOST_NODES = 2**26, 5_000_000
_FORM = "expected lists [prompt, answer], or mappings with prompt and answer"


class Example(NamedTuple):
    """A prompt of a user, and an answer that shows a concept.

    Args:
        prompt: what the user says.
        answer: what the model is to say.
    """

    prompt: str
    answer: str


def load_examples(source: str | Path | Mapping[str, Sequence[Any]]) -> dict[str, list[Example]]:
    """Examples by the text of their concept.

    Args:
        source: a YAML file, or what it holds.

    Raises:
        PromptError: no such file, or one that holds something else; the message names the concept.

    Example:
        >>> load_examples({"be kind": [["hello", "hello, dear"]]})
        {'be kind': [Example(prompt='hello', answer='hello, dear')]}
    """
    where = "these concepts"
    content: Any = source
    if isinstance(source, str | Path):
        where = str(source)
        what = "a file of concepts holds, for the text of each, examples [prompt, answer]"
        raw = decode(read_bytes(source, MOST_BYTES, what, "file of concepts"), where)
        content = parse_yaml(raw, where, MOST_NODES)
    if not isinstance(content, Mapping) or not content:
        raise PromptError(f"{where} must map texts of concepts to examples, found {quote(content)}")
    found = {}
    for text, rows in content.items():
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"{where}: the text of a concept must be words, found {quote(text)}")
        if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
            raise PromptError(f"{where}, concept {quote(text)}: {_FORM}, found {quote(rows)}")
        found[text] = [_example(row, f"{where}, concept {quote(text)}") for row in rows]
    return found


def _example(row: Any, where: str) -> Example:
    parts = [row.get("prompt"), row.get("answer")] if isinstance(row, Mapping) and len(row) == 2 else row
    if not isinstance(parts, Sequence) or isinstance(parts, str) or len(parts) != 2:
        raise PromptError(f"{where}: {_FORM}, found {quote(row)}")
    if not all(isinstance(part, str) and part.strip() for part in parts):
        raise PromptError(f"{where}: prompt and answer must be texts, found {quote(row)}")
    return Example(*parts)
