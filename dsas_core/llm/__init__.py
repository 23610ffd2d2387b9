"""Language models: the same concepts, probes and maps as for pictures, at the layers of a transformer.

`load` a model, `learn` a concept from a prompt file, `calibrate` its range, `illustrate` its card, `steer` with it
(`steered` tells what steers a model, `detach` ends it); `Monitor` records gates without steering. `steering/answer.py`
answers a message, as the command line and the demo do.

Example:
    >>> model, tokenizer = load("builtin:chat", device="cpu")
    >>> with steer(model, {"builtin:rudeness": 1.0}) as steering:
    ...     steering.strengths
    Strengths({'rudeness': 1.0})
"""

from __future__ import annotations

from ..concept.concept import Concept
from ..errors import DSASError
from ..steering.strengths import Auto
from . import flas
from .learning.calibrate import calibrate
from .learning.illustrate import illustrate
from .learning.learn import Lesson, learn
from .learning.stars import stars
from .model.layers import find_sites
from .model.load import is_language_model, load
from .steering.monitor import Monitor
from .steering.steer import TextSteering, detach, steer, steered
from .steering.token_heatmap import as_html, as_svg, as_terminal
from .steering.trace import TextTrace, Token

__all__ = [
    "Auto",
    "Concept",
    "DSASError",
    "Lesson",
    "Monitor",
    "TextSteering",
    "TextTrace",
    "Token",
    "as_html",
    "as_svg",
    "as_terminal",
    "calibrate",
    "detach",
    "find_sites",
    "flas",
    "illustrate",
    "is_language_model",
    "learn",
    "load",
    "stars",
    "steer",
    "steered",
]
