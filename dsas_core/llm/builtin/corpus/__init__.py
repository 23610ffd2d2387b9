"""The closed world of `builtin:chat`: sentence templates in YAML files, and the code that draws texts from them."""

from __future__ import annotations

from .conversations import UNKNOWN, conversation, sample_conversation, vocabulary
from .descriptions import Description, draw_description, draw_descriptions
from .facts import Fact, Question, fact_questions, facts
from .help_desk import CALM, Request, draw_angry_question, draw_angry_questions, draw_request, draw_requests, draw_talk
from .tones import MANNERS, RUDE_WORDS, rude
from .topics import TOPICS

__all__ = [
    "CALM",
    "MANNERS",
    "RUDE_WORDS",
    "TOPICS",
    "UNKNOWN",
    "Description",
    "Fact",
    "Question",
    "Request",
    "conversation",
    "draw_angry_question",
    "draw_angry_questions",
    "draw_description",
    "draw_descriptions",
    "draw_request",
    "draw_requests",
    "draw_talk",
    "fact_questions",
    "facts",
    "rude",
    "sample_conversation",
    "vocabulary",
]
