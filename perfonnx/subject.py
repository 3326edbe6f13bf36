"""The subject of a search or a training: a model, how it is read, and the images that go with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from perfonnx.corrections import Corrections
from perfonnx.data.samples import FeedsOf
from perfonnx.inspection import Inspection, inspect
from perfonnx.masks import ImpactMaps
from perfonnx.methods import Context, Method
from perfonnx.model.files import LoadedModel, ModelSource
from perfonnx.model.signature import load_fixed
from perfonnx.model.workspace import Workspace
from perfonnx.plan import Plan
from perfonnx.rewriting import Rewritten, able, opened, rewrite

REPAIR_IMAGES = 200
"""Images that layers are repaired by, at most; more make little difference."""

KEPT = 16
"""Plans whose corrections are kept in memory, the latest ones."""


class SamplesLike(Protocol):
    """What is needed of `perfonnx.data.samples.Samples`."""

    def __iter__(self) -> Iterator[Any]:
        """The batches (`perfonnx.data.samples.BatchLike`), the same ones in each pass."""

    def __len__(self) -> int:
        """Number of images."""

    def take(self, n: int) -> Any:
        """The first n images."""

    def split(self, a: int, b: int, seed: int = 0) -> Any:
        """Two parts without a common image."""

    def shuffled(self, seed: int = 0) -> Any:
        """All images, in an order that the seed decides."""


@dataclass(frozen=True)
class Subject:
    """The model that is worked on, and what it is worked on with.

    Attributes:
        source: The model.
        input_shapes: Sizes for symbolic dimensions.
        freeze_weights: As for `perfonnx.rewrite`.
        calibration: Images to repair layers by, where a plan asks for it.
        impact_maps: What masks called `impact` are made from.
    """

    source: ModelSource
    input_shapes: Mapping[str, Sequence[int | str | None]] = field(default_factory=dict)
    freeze_weights: bool = False
    calibration: SamplesLike | None = None
    impact_maps: ImpactMaps | None = None
    _opened: list[Workspace] = field(default_factory=list, init=False, repr=False, compare=False)
    _repaired: dict[str, Corrections] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph: it is opened again where it is wanted."""
        return {**self.__dict__, "_opened": []}

    def rewrite(
        self, plan: Plan, *, layout: str | None = None, fallback: bool = False, images: int | None = None
    ) -> Rewritten:
        """The model rewritten by a plan.

        Args:
            plan: What to do.
            layout: As for `perfonnx.rewrite`.
            fallback: Give operators function bodies; not needed where the model only runs here.
            images: How many images layers are repaired by; None: `REPAIR_IMAGES`. One is enough for timing. What was
                found is kept for a few plans: by many images it takes far longer than all else.
        """
        feeds, corrections, key = None, None, ""
        if self.calibration is not None and plan.needs_targets:
            count = min(images or REPAIR_IMAGES, len(self.calibration))
            key = f"{layout or plan.layout} {count} {json.dumps(plan.to_json(), sort_keys=True)}"
            corrections = self._repaired.get(key)
            feeds = FeedsOf(self.calibration.take(count)) if corrections is None else None
        rewritten = rewrite(
            self.source,
            plan=plan,
            input_shapes=self.input_shapes,
            layout=layout,
            fallback=fallback,
            freeze_weights=self.freeze_weights,
            samples=feeds,
            corrections=corrections,
            impact_maps=self.impact_maps,
        )
        if feeds is not None:
            while len(self._repaired) >= KEPT:
                self._repaired.pop(next(iter(self._repaired)), None)
            self._repaired[key] = rewritten.corrections
        return rewritten

    def able(self, layers: Sequence[str], method: Method, seed: int) -> list[str]:
        """Those of the layers that a method can replace; a pooling-structure mask, say, needs a pool behind it."""
        if not self._opened:
            self._opened.append(opened(self.original()))
        return able(Context(self._opened[0], seed, self.impact_maps), layers, method)

    def inspect(self) -> Inspection:
        """The model's convolutions."""
        return inspect(self.source, input_shapes=self.input_shapes, freeze_weights=self.freeze_weights)

    def original(self) -> LoadedModel:
        """The model as it came, with the sizes that were given."""
        return load_fixed(self.source, self.input_shapes, freeze=self.freeze_weights)

    def serialized(self) -> bytes:
        """The original as bytes that are the same for the same model."""
        return self.original().proto.SerializeToString(deterministic=True)
