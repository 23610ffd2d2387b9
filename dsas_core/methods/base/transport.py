"""The base of the three maps of AcT, which transport each dimension by itself: T(x; s) = x + s * m * ((ω - 1) x + β).

Rodriguez et al., "Controlling Language and Diffusion Models by Transporting Activations", arXiv 2410.23054; released
code. A strength of 1 transports all the way; beyond 1 and below 0 the map is extrapolated.

- `support` is the mask m: "observed" moves a dimension only where it is strictly inside the range of its source rows
  (for mitigation), None everywhere (for bringing a concept in). At its edges the map jumps.
- `spatial`: "elementwise" moves every position by itself; "mean shift" moves the mean over positions and adds the
  same to all of them, the mask read on the mean, as the released linear map does in pictures. (The released Gaussian
  map moves positions by themselves with the mask of the mean, which is neither.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...maps import AffineMap, Map, MeanShiftMap, SupportMap
from .map_method import MapMethod, one_of

#: a dimension whose standard deviation is at most this, on either side, is left as it is
SMALLEST_STD = 1e-4


def varying_dimensions(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Which dimensions vary enough on both sides.

    Args:
        source: [n, width].
        target: [m, width].

    Returns:
        bool [width].

    Example:
        >>> varying_dimensions(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 5.0]]))
        tensor([ True, False])
    """
    return (source.std(0) > SMALLEST_STD) & (target.std(0) > SMALLEST_STD)


class Transport(MapMethod):
    """Base of the three: `_affine` is the map, the options `support` and `spatial` say where it acts."""

    options = {"support": one_of(None, "observed"), "spatial": one_of("elementwise", "mean shift")}

    def obstacle_to_texts(self, options: Mapping[str, Any]) -> str | None:
        if options.get("spatial") != "mean shift":
            return None
        return "option spatial=mean shift goes by all positions at once: leave it elementwise for texts"

    def _affine(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        raise NotImplementedError

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, support: str | None, spatial: str) -> Map:
        affine = self._affine(source, target)
        inner = affine if support is None else SupportMap(affine, source.amin(0), source.amax(0))
        return MeanShiftMap(inner) if spatial == "mean shift" else inner
