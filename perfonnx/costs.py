"""What a layer costs on maps, on rows and dense: estimates by which a rewrite decides what pays.

The figures were measured with one thread of an AMD EPYC (Zen 4, AVX-512) and onnxruntime 1.31 (`tools/measure_costs.py`
prints them for yours). Only their ratios matter, and those differ little between machines: a convolution is bound by
multiplies, turning a map to rows or back by memory. `perfonnx bench` measures what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from perfonnx.graph import ConvSite

KINDS = ("wide", "narrow", "narrow, large", "pointwise", "depthwise")
NARROW = 16
"""Layers that read fewer channels than this are bound by reading their taps."""


def kind_of(site: ConvSite) -> str:
    """One of `KINDS`."""
    assert site.attributes is not None
    if site.w_shape[1] == 1 and site.attributes.group > 1:
        return "depthwise"
    if site.attributes.kernel_shape == (1, 1):
        return "pointwise"
    if site.w_shape[1] >= NARROW:
        return "wide"
    return "narrow" if math.prod(site.attributes.kernel_shape) <= 9 else "narrow, large"


@dataclass(frozen=True)
class Costs:
    """Nanoseconds on one thread.

    Attributes:
        dense: Per thousand multiplies of onnxruntime's Conv, by kind.
        rows: Per thousand multiplies of a layer on rows, by kind.
        compact: Per thousand values of a map that is turned to rows.
        expand: Per thousand values of a map that is written from rows.
        canonical: Per thousand values that a layer on maps reads and writes, beside its multiplies.
    """

    dense: Mapping[str, float] = field(
        default_factory=lambda: {
            "wide": 18.7,
            "narrow": 34.0,
            "narrow, large": 19.7,
            "pointwise": 20.2,
            "depthwise": 62.0,
        }
    )
    rows: Mapping[str, float] = field(
        default_factory=lambda: {
            "wide": 18.8,
            "narrow": 38.0,
            "narrow, large": 34.0,
            "pointwise": 20.0,
            "depthwise": 85.0,
        }
    )
    compact: float = 240.0
    expand: float = 300.0
    canonical: float = 400.0

    def of_dense(self, site: ConvSite) -> float:
        """The convolution as onnxruntime runs it."""
        return self.dense[kind_of(site)] * (site.multiplies or 0) / 1000

    def of_rows(self, site: ConvSite, share: float) -> float:
        """The same on rows, computed at this share of the positions."""
        return self.rows[kind_of(site)] * (site.multiplies or 0) * share / 1000

    def of_canonical(self, site: ConvSite, share: float) -> float:
        """The same as one operator from map to map."""
        assert site.input_shape is not None
        assert site.output_shape is not None
        read = math.prod(d for d in site.input_shape[1:] if isinstance(d, int))
        written = site.w_shape[0] * math.prod(site.output_shape)
        return self.of_rows(site, share) + self.canonical * (read + written) / 1000


DEFAULT_COSTS = Costs()
