"""The closed world of `builtin:chat`: sentence templates in YAML files, and the code that draws texts from them.

What the model was trained on is drawn from it by benchmarks/builtin_models/conversations.py of the repository.
"""

from __future__ import annotations

from .descriptions import draw_description, draw_descriptions
from .facts import Fact, Question, fact_questions, facts
from .help_desk import CALM, Request, draw_request, draw_requests, draw_talk
from .tones import MANNERS, is_rude
from .topics import TOPICS

__all__ = [
    "CALM",
    "MANNERS",
    "TOPICS",
    "Fact",
    "Question",
    "Request",
    "draw_description",
    "draw_descriptions",
    "draw_request",
    "draw_requests",
    "draw_talk",
    "fact_questions",
    "facts",
    "is_rude",
]
