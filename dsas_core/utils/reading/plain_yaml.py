"""YAML that holds texts, numbers, true, false, null, lists and mappings, and means what its author meant.

What YAML makes of a text without quotes is told and not taken (`2024-01-01` is a date, `no` is false as a key); so are
keys that stand twice, of which the last would win, and files that grow when they are read. Texts in block style (`|`)
end without the line break that the style puts behind them; `|+` keeps it.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.constructor import ConstructorError

from ...errors import PromptError, quote, shorten

#: lists and mappings within one another
MAX_DEPTH = 24
#: texts, lists and mappings, those that aliases (`*name`) stand for included
MAX_NODES = 100_000

_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_KINDS = {"bool": "true or false", "null": "null", "int": "a number", "float": "a number", "timestamp": "a date"}


def parse_yaml(text: str, where: str, max_nodes: int = MAX_NODES) -> Any:
    """What a YAML text holds.

    Args:
        text: the YAML.
        where: the file that it is from, for errors.
        max_nodes: texts, lists and mappings that it may hold.

    Raises:
        PromptError: no YAML, or other YAML than plain data: tags, dates, keys that are no texts or stand twice, lists
            within themselves, too much of anything. The message names the line.

    Example:
        >>> parse_yaml("a: [1, b]", "a.yaml")
        {'a': [1, 'b']}
    """
    try:
        loader = _PlainLoader(text, max_nodes)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()  # its parser holds itself, and the text
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        reason = shorten(f"{error.problem or error.context}", 250)
        if isinstance(error, _RefusalError):
            raise PromptError(f"{where}{line}: {reason}") from None
        raise PromptError(
            f"{where}{line} is not YAML: {reason}; texts with braces or colons belong in quotes"
        ) from None
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise PromptError(
            f"{where}, line {number} is not YAML: it holds the character {error.character!r}, which YAML does not: "
            "leave it out"
        ) from None


class _RefusalError(ConstructorError):
    """YAML that is valid, and not taken."""


class _PlainLoader(yaml.SafeLoader):
    def __init__(self, text: str, max_nodes: int) -> None:
        super().__init__(text)
        self._max_nodes = max_nodes
        self._nodes = self._depth = self._deepest = 0
        self._anchored: dict[str, tuple[int, int]] = {}  # name -> nodes, depth

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._anchored:
                raise _refusal(f"*{event.anchor} is within what it stands for: write it out", event)
            nodes, depth = self._anchored.get(str(event.anchor), (0, 0))
            self._count(nodes, depth, event)
            return super().compose_node(parent, index)
        if event.tag not in (None, "!", _TAG + "str"):
            tag = shorten(event.tag.replace(_TAG, "!!"), 60)
            reason = f"it has the tag {tag}, which is not read: expected texts, lists and mappings"
            raise ConstructorError(None, None, reason, event.start_mark)
        before, around = self._nodes, self._deepest
        self._depth += 1
        self._deepest = self._depth
        self._count(1, 0, event)
        node: Any = super().compose_node(parent, index)
        if node.tag not in _PLAIN:
            raise _refusal(f"{quote(node.value, 40)} is read as {_kind(node)}: put it in quotes", node)
        if event.anchor is not None:
            self._anchored[event.anchor] = (self._nodes - before, self._deepest - self._depth + 1)
        self._deepest = max(self._deepest, around)
        self._depth -= 1
        return node

    def _count(self, nodes: int, depth: int, event: Any) -> None:
        self._nodes += nodes
        self._deepest = max(self._deepest, self._depth + depth)
        if self._deepest > MAX_DEPTH:
            raise _refusal(f"more than {MAX_DEPTH} lists or mappings are within one another: take some away", event)
        if self._nodes > self._max_nodes:
            raise _refusal(f"it has more than {self._max_nodes:,} texts: use placeholders, or leave some out", event)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag == _TAG + "merge":
                continue
            if key.tag != _TAG + "str" or not isinstance(key, yaml.ScalarNode):
                raise _refusal(f"the key {_found(key)} is read as {_kind(key)}, not as a text: put it in quotes", key)
            if key.value in seen:
                raise _refusal(f"the key {quote(key.value, 60)} stands twice: make one of them, or rename one", key)
            seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError:
            raise _refusal(
                f"{quote(node.value, 40)} cannot be read as {_kind(node)}: put a text in quotes", node
            ) from None

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if node.style in ("|", ">") and "+" not in node.start_mark.buffer[node.start_mark.index :].split("\n", 1)[0]:
            value = value.removesuffix("\n")
        if any("\ud800" <= character <= "\udfff" for character in value):  # as JSON writes what is beyond U+FFFF
            try:
                return value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                raise _refusal(f"{quote(value, 60)} holds half a character (a surrogate): leave it out", node) from None
        return value


def _kind(node: Any) -> str:
    name = node.tag.removeprefix(_TAG)
    return _KINDS.get(name, "something else than a text" if isinstance(node, yaml.ScalarNode) else "a list or mapping")


def _found(node: Any) -> str:
    return quote(node.value, 40) if isinstance(node, yaml.ScalarNode) else "in brackets"


def _refusal(reason: str, found: Any) -> _RefusalError:
    return _RefusalError(None, None, reason, found.start_mark)
