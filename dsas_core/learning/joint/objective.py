"""The loss of joint training: distance of steered sources from targets, and preservation of controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ...errors import DSASError, UnsupportedError
from ...methods.training.optimal_transport import wasserstein
from ...model.sites import Site
from ...utils.processes import Share
from .visitor import Pass


class Loss(NamedTuple):
    """The terms of the loss, each in squared activations per dimension.

    Args:
        transport: mean over sites and dimensions of the squared Wasserstein distance, [].
        preservation: mean over sites, positions and dimensions of the squared change of controls, []; 0 where gates are
            not trained.

    Example:
        >>> Loss(torch.tensor(2.0), torch.tensor(0.5)).total(gamma=2.0)
        tensor(3.)
    """

    transport: torch.Tensor
    preservation: torch.Tensor

    def total(self, gamma: float) -> torch.Tensor:
        """What is minimised."""
        return self.transport + gamma * self.preservation


def measure_loss(
    done: Pass,
    targets: Mapping[Site, torch.Tensor],
    share: Share,
    own: Sequence[int],
    sources: int,
    *,
    preserve: bool = False,
) -> Loss:
    """The loss of a pass; of several processes, each with some of the rows, that of all rows with this one's gradient.

    Args:
        done: the pass.
        targets: of each site, the means of all target prompts, [n, width].
        share: of this process.
        own: which of the source rows are in the pass.
        sources: how many source rows all processes have together.
        preserve: whether controls are in the passes of any process.

    Raises:
        UnsupportedError: a site that passes no gradient on.
        DSASError: a loss that is not finite.
    """
    transports = []
    for site, target in targets.items():
        means = done.means[site]
        if torch.is_grad_enabled() and not means.requires_grad:
            raise UnsupportedError(
                f"{site} passes no gradient on, as the model runs it without: choose other sites, or a method that "
                "does not train"
            )
        rows = share.gather(means, own, sources)
        transports.append(wasserstein(rows, target.to(rows)).mean())
    device, sites = transports[0].device, list(targets)
    losses = torch.stack([part.to(device) for part in transports])
    _check_finite(losses, sites, "transport")
    if not preserve:
        return Loss(losses.mean(), losses.new_zeros(()))
    none = losses.new_zeros(2)  # of a process that has no control in this pass
    squares, counts = torch.stack([done.moved.get(site, none).to(none) for site in sites]).unbind(1)
    _check_finite(squares, sites, "preservation")
    return Loss(losses.mean(), share.add((squares / share.add(counts).clamp_min(1)).mean()))


def _check_finite(losses: torch.Tensor, sites: Sequence[Site], term: str) -> None:
    """Raise a DSASError that names the first site whose loss is not finite."""
    finite = losses.isfinite()
    if not bool(finite.all()):
        site = sites[int((~finite).nonzero()[0])]
        raise DSASError(
            f"training: the loss of {term} is not finite at {site}: lower the rate (training rate), load the model in "
            "float32 or bfloat16, or leave the site out"
        )
