"""FLAS: one network for all concepts that can be named, trained once per model (arXiv 2605.05892).

`train` a network, or `load` a folder that its authors released; `network.concept(model, tokenizer, "talk like a
pirate")` is a concept like any other, whose map is a flow (`dsas_core.maps.flow`): strength 1 is a flow time of 2, the
longest that networks are trained on.

Traps: a network takes the place of one layer, and costs about as much as three of them, with a cache of its own; the
first token of each text, which steering leaves alone, is moved by its authors; what a network was not trained on, it
may ignore.

Example:
    >>> from dsas_core import llm
    >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
    >>> network = start(model, layer=3)
    >>> network.concept(model, tokenizer, "be kind")
    Concept('be kind', flas+on, 1 sites, unit 1)
"""

from __future__ import annotations

from .examples import Example, load_examples
from .folder import load, save
from .network import Network
from .start import start
from .training import train

__all__ = ["Example", "Network", "load", "load_examples", "save", "start", "train"]
