"""Heat against masks: known answers."""

from __future__ import annotations

import numpy as np
import pytest

from dsas_core import DSASError
from dsas_diffusion.vision.localisation import Localisation, average, localisation

MASK = np.zeros((4, 4), bool)
MASK[:2, :2] = True


@pytest.mark.parametrize(
    ("heat", "expected"),
    [
        (MASK.astype(float), Localisation(1.0, 1.0, 1.0)),
        (1 - MASK.astype(float), Localisation(0.0, 0.0, 0.0)),
        (np.full((4, 4), 0.7), Localisation(0.5, 0.25, 0.25)),
        (np.full((4, 4), 0.2), Localisation(0.5, 0.0, 0.25)),
        (np.where(MASK, 0.4, 0.1), Localisation(1.0, 0.0, 1.0)),
    ],
)
def test_known_answers(heat: np.ndarray, expected: Localisation) -> None:
    result = localisation(heat, MASK)
    assert (result.auroc, result.iou, result.pointing) == (expected.auroc, expected.iou, expected.pointing)


def test_averages_and_what_has_none() -> None:
    assert average([Localisation(1, 0.5, 1), Localisation(0, 0, 0)]) == Localisation(0.5, 0.25, 0.5)
    with pytest.raises(DSASError, match="nothing to average"):
        average([])
    for mask in (np.zeros((4, 4), bool), np.ones((4, 4), bool)):
        with pytest.raises(DSASError, match="empty or full"):
            localisation(np.ones((4, 4)), mask)
    with pytest.raises(DSASError, match="expected one shape"):
        localisation(np.ones((2, 2)), MASK)
