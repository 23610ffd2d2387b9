"""How far a concept's change reaches beyond its thing: a blur is wider, another fruit has another shape.

Pictures of source prompts are drawn unsteered, with the mask that the concept's probes see, and steered. By the
distance from the mask, the mean change of pixels falls from what it is inside to what it is everywhere, as steering the
prompt moves all of the picture a little. The reach is where it has fallen by half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: widths of the picture by which a mask may grow, as far as is looked
WIDEST = 0.125
#: distances that are compared
RINGS = 8
#: share of the change inside, both beyond that of the picture's far parts, from which on a distance is within reach
WITHIN = 0.5
#: how much more the inside has to change than the picture's far parts, in the change of these, for a reach to be told
CLEAR = 0.5


def reach_of(changes: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """How far changes reach beyond masks, in widths of the picture.

    Args:
        changes: differences of pixels, [height, width, 3] each.
        masks: of each picture, above 0 inside, [height, width]; those that mark nothing, or everything, do not count.

    Example:
        >>> change = np.zeros((64, 64, 3))
        >>> change[:, :36] = 40
        >>> mask = np.zeros((64, 64))
        >>> mask[:, :32] = 1
        >>> reach_of([change], [mask])
        0.0625
    """
    from scipy import ndimage

    sums, counts = np.zeros(RINGS + 2), np.zeros(RINGS + 2)
    for change, mask in zip(changes, masks, strict=True):
        if (mask > 0).any() and not (mask > 0).all():
            distance = ndimage.distance_transform_edt(mask == 0) / mask.shape[1]
            ring = np.ceil(np.minimum(distance / WIDEST, 1 + 1 / RINGS) * RINGS).astype(int)
            sums += np.bincount(ring.ravel(), np.abs(change).mean(-1).ravel(), RINGS + 2)
            counts += np.bincount(ring.ravel(), minlength=RINGS + 2)
    means = sums / np.maximum(counts, 1)
    excess = means - means[-1]  # over that of the far parts
    if excess[0] < CLEAR * means[-1] or not counts[0]:  # nothing stands out
        return 0.0
    fallen = [ring for ring in range(1, RINGS + 1) if excess[ring] <= WITHIN * excess[0]]
    return (min(fallen, default=RINGS + 1) - 1) * WIDEST / RINGS
