"""How much pictures differ from one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

#: a picture is unchanged up to this mean absolute difference, of 255
UNCHANGED = 2.0


def change(base: Sequence[Image.Image], steered: Sequence[Image.Image]) -> np.ndarray:
    """Mean absolute pixel difference of each pair of pictures, 0 to 255, float [n].

    Example:
        >>> black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (3, 3, 3))
        >>> change([black, black], [black, grey]).tolist()
        [0.0, 3.0]
    """
    pairs = zip(base, steered, strict=True)
    return np.array([np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean() for a, b in pairs])
