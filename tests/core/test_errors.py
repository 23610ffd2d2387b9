"""Messages of errors: one line that can be read, whatever of the user's they quote."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from dsas_core.errors import LONGEST_MESSAGE, LONGEST_QUOTE, ArtifactError, DSASError, quote


@given(st.text(max_size=5000))
def test_message_is_one_line(text: str) -> None:
    message = str(DSASError(text))
    assert message == "" or message.isprintable()
    assert len(message) <= LONGEST_MESSAGE


@given(st.one_of(st.text(max_size=300), st.lists(st.integers()), st.just(10**5000)))
def test_quoted_values_are_short(value: object) -> None:
    assert len(quote(value)) <= LONGEST_QUOTE


def test_long_message_keeps_both_ends() -> None:
    message = str(DSASError(f"found {'x' * 9000}: choose another name"))
    assert message.startswith("found x")
    assert message.endswith("choose another name")


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ArtifactError("no\nconcept")))
    assert type(error) is ArtifactError
    assert str(error) == "no concept"
