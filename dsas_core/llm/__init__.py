"""dsas_core for language models: the same concepts, probes and maps, at the layers of a transformer.

`load` a model, `learn` a concept from a prompt file, `steer` with it, `calibrate` how far, `illustrate` its card;
`Monitor` only watches. `answer.py` has one message answered, as the command line and the demo do.
"""

from __future__ import annotations

from ..concept import Concept
from ..errors import DSASError
from ..strengths import Auto
from .calibrate import calibrate
from .layers import find_sites
from .learn import Lesson, learn
from .load import is_language_model, load
from .monitor import Monitor
from .samples import illustrate
from .steer import TextSteering, steer
from .token_heatmap import as_html, as_svg, as_terminal
from .trace import TextTrace, Token

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
    "find_sites",
    "illustrate",
    "is_language_model",
    "learn",
    "load",
    "steer",
]
