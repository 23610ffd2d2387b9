"""What is kept of prompts: of those that a concept was learned from, all or, where they are private, only hashes.

What an evaluation writes down, and the activations that learning keeps in a folder, follow the same rule.

Whoever has the texts can tell by hashes which of them were used, so that calibration and evaluation leave these out.
Nobody else can read them; but a text that can be guessed word by word can be recognised, too.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...concept.data import ConceptData
from ...errors import DSASError, PromptError
from .held_out import split_held_out
from .prompt_file import load_prompts
from .prompt_set import SIDES, PromptSet

KEEP = ("all", "hash")
#: hexadecimal digits of a prompt's hash; that any two of 100,000 prompts share one has a chance below 1 in 10^9
DIGITS = 16


def hash_prompt(prompt: str) -> str:
    """The hash of one prompt, the first digits of its SHA-256.

    Example:
        >>> hash_prompt("a banana")
        '22c8586101346a58'
    """
    return hashlib.sha256(prompt.encode()).hexdigest()[:DIGITS]


def hash_content(prompts: PromptSet) -> str:
    """The SHA-256 of what decides which prompts are drawn: templates and placeholders, whatever the file is named.

    Args:
        prompts: the prompt file.
    """
    content = prompts.to_dict()
    drawn_from = {key: content.get(key) for key in (*SIDES, "placeholders", "evaluation")}
    return hashlib.sha256(json.dumps(drawn_from, sort_keys=True).encode()).hexdigest()


def what_to_keep(keep: str | None, prompts: PromptSet) -> str:
    """What a concept is to keep of its prompts.

    Args:
        keep: "all" or "hash"; None for "hash" where the prompt file is marked as private, and "all" elsewhere.
        prompts: the prompt file.

    Raises:
        DSASError: neither of them.
    """
    if keep is None:
        return "hash" if prompts.private else "all"
    if keep not in KEEP:
        raise DSASError(f"keep_prompts {keep!r}: expected {' or '.join(KEEP)}, or None for what the prompt file says")
    return keep


def are_private(concept: ConceptData, prompts: PromptSet) -> bool:
    """Whether what is written down about a concept and a prompt file has hashes in place of the prompts."""
    return prompts.private or concept.is_private


def record_prompts(prompts: PromptSet, count: int, seed: int, keep: str) -> dict[str, Any]:
    """What the provenance of a concept says of its prompts.

    Args:
        prompts: the prompt file.
        count: source prompts that were drawn from it.
        seed: with which they were drawn.
        keep: "all" or "hash".

    Returns:
        The items "prompts" or "prompt_hashes", and "prompts_sha256", that of the file, where it is from a file.
    """
    file = {"prompts_sha256": prompts.sha256} if prompts.sha256 else {}
    if keep == "all":
        return {"prompts": prompts.to_dict(), **file}
    hashes = {
        "name": prompts.name,
        "sha256": hash_content(prompts),
        "counts": {side: len(prompts.expanded(side)) for side in SIDES},
        "drawn": {side: list(map(hash_prompt, drawn)) for side, drawn in prompts.draw(count, seed).items()},
    }
    return {"prompt_hashes": hashes, **file}


@dataclass(frozen=True)
class KeptPrompts:
    """The prompts of a concept's learning, as far as the concept keeps them.

    Args:
        concept: the concept's name.
        drawn: the prompts of each side as they were drawn, or, without `content`, their hashes.
        content: the prompt file; None where only hashes were kept.
        sha256: `hash_content` of the prompt file; "" where it was kept.
    """

    concept: str
    drawn: Mapping[str, list[str]]
    content: PromptSet | None = None
    sha256: str = ""

    def are_of(self, prompts: PromptSet) -> bool:
        """Whether they were drawn from this prompt file."""
        if self.content is None:
            return self.sha256 == hash_content(prompts)
        return self.content.to_dict() == prompts.to_dict()

    def used_in(self, prompts: PromptSet, *, fitted_only: bool = False) -> list[str]:
        """The prompts of a file that learning used; a warning where hashes are all there is, and of another file.

        Args:
            prompts: the prompt file.
            fitted_only: without the quarter that learning held out.
        """
        sides = split_held_out(self.drawn)[0] if fitted_only else self.drawn
        used = {text for side in sides.values() for text in side}
        if self.content is not None:
            return sorted(used)
        given = [prompt for side in (*SIDES, *prompts.evaluation) for prompt in prompts.expanded(side)]
        found = [prompt for prompt in dict.fromkeys(given) if hash_prompt(prompt) in used]
        if not self.are_of(prompts):
            warnings.warn(
                f"prompt file {prompts.name!r} is not the one that concept {self.concept!r} was learned from, by its "
                f"hash: {len(found)} of its prompts were used in learning and are left out",
                stacklevel=3,
            )
        return found


def kept_prompts(concept: ConceptData) -> KeptPrompts | None:
    """The prompts of a concept's learning, as far as it keeps them; None where it says nothing of them.

    Args:
        concept: a learned concept.

    Raises:
        PromptError: the concept's record of its prompts is damaged.

    Example:
        >>> from dsas_core import Concept
        >>> kept = kept_prompts(Concept.from_pretrained("builtin:banana-blur"))
        >>> kept.content.name, len(kept.drawn["source"])
        ('banana-blur', 48)
    """
    own = concept.provenance
    if "prompt_hashes" in own:
        try:
            hashes = own["prompt_hashes"]
            drawn = {side: [str(text) for text in hashes["drawn"][side]] for side in SIDES}
            return KeptPrompts(concept.name, drawn, sha256=str(hashes["sha256"]))
        except (KeyError, TypeError, IndexError):
            raise PromptError(
                f"concept {concept.name!r}: its hashes of prompts are damaged: learn it again, or get it anew"
            ) from None
    count, seed = own.get("count"), own.get("seed")
    if not own.get("prompts") or not isinstance(count, int) or not isinstance(seed, int):
        return None
    content = load_prompts(own["prompts"])
    return KeptPrompts(concept.name, content.draw(count, seed), content)


def prompts_are_missing(concept: ConceptData) -> PromptError:
    """The error of a concept that does not tell its prompts, where none are given."""
    if "prompt_hashes" in concept.provenance:
        reason = "keeps hashes of its prompts only: give the prompt file that it was learned from (--prompts)"
    else:
        reason = "does not tell from which prompts it was learned: give a prompt file (--prompts)"
    return PromptError(f"concept {concept.name!r} {reason}")
