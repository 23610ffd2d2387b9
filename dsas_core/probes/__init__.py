"""Probes: WHEN an activation is moved. `score(x) -> h` in [0, 1], broadcastable to x."""

from .agreement import AgreementProbe
from .base import ComplementProbe, Probe
from .combine import AllProbe, AnyProbe, PooledProbe, ProductProbe
from .condition import ConditionLatch, ConditionProbe, PooledConditionProbe
from .constant import ConstantProbe
from .cosine import CosineProbe
from .linear import LinearProbe, fold
from .mlp import MLPProbe
from .quadratic import QuadraticProbe, quadratic
from .quantile import QuantileProbe
from .rectified import RectifiedProbe
from .running import LastProbe, LatchProbe, PrefixProbe, RunningProbe, TextProbe
from .step import StepProbe

__all__ = [
    "AgreementProbe",
    "AllProbe",
    "AnyProbe",
    "ComplementProbe",
    "ConditionLatch",
    "ConditionProbe",
    "ConstantProbe",
    "CosineProbe",
    "LastProbe",
    "LatchProbe",
    "LinearProbe",
    "MLPProbe",
    "PooledConditionProbe",
    "PooledProbe",
    "PrefixProbe",
    "Probe",
    "ProductProbe",
    "QuadraticProbe",
    "QuantileProbe",
    "RectifiedProbe",
    "RunningProbe",
    "StepProbe",
    "TextProbe",
    "fold",
    "quadratic",
]
