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
from perfonnx.methods import Context, Method, Needs
from perfonnx.model.atomic import digest
from perfonnx.model.files import LoadedModel, ModelSource
from perfonnx.model.layers import Layer, all_layers
from perfonnx.model.signature import load_fixed
from perfonnx.model.workspace import Workspace
from perfonnx.passes.targets import influences
from perfonnx.plan import Plan
from perfonnx.rewriting import Rewritten, able, opened, rewrite

REPAIR_IMAGES = 200
"""Images that layers are repaired by, at most; more make little difference."""

KEPT_BYTES = 1 << 30
"""Size of the corrections that are kept in memory, the latest ones."""


@dataclass
class Fits:
    """What layers were corrected by, as far as there is room: by what a correction depends on, see `Subject.rewrite`.

    Attributes:
        kept: By key, the latest last.
        counts: By how many images layers were ever fitted.
    """

    kept: dict[str, Corrections] = field(default_factory=dict)
    counts: set[int] = field(default_factory=set)
    _bytes: int = 0

    def get(self, key: str) -> Corrections | None:
        """What is kept under a key, now the latest."""
        found = self.kept.pop(key, None)
        if found is not None:
            self.kept[key] = found
        return found

    def put(self, key: str, corrections: Corrections, images: int) -> None:
        """Keep something; the oldest goes where there is no room."""
        if key in self.kept:
            return
        self.counts.add(images)
        self.kept[key] = corrections
        self._bytes += _size(corrections)
        while self._bytes > KEPT_BYTES and len(self.kept) > 1:
            self._bytes -= _size(self.kept.pop(next(iter(self.kept))))


def _size(corrections: Corrections) -> int:
    return sum(each.nbytes for each in corrections.values())


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


class Calibration(Protocol):
    """What is needed of samples to fit layers by."""

    def __iter__(self) -> Iterator[Any]:
        """The batches, the same ones in each pass."""

    def __len__(self) -> int:
        """Number of images."""

    def take(self, n: int) -> Any:
        """The first n images."""


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
    calibration: Calibration | None = None
    impact_maps: ImpactMaps | None = None
    _opened: list[Workspace] = field(default_factory=list, init=False, repr=False, compare=False)
    _influence: dict[str, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _fits: Fits = field(default_factory=Fits, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the graph and the corrections: they are made again where they are wanted."""
        return {**self.__dict__, "_opened": [], "_fits": Fits()}

    def rewrite(
        self, plan: Plan, *, layout: str | None = None, fallback: bool = False, images: int | None = None
    ) -> Rewritten:
        """The model rewritten by a plan.

        Args:
            plan: What to do.
            layout: As for `perfonnx.rewrite`.
            fallback: Give operators function bodies; not needed where the model only runs here.
            images: How many images layers are repaired by; None: `REPAIR_IMAGES`. What was found is kept: by many
                images it takes far longer than all else. A layer's correction depends on what is done with the layers
                that have an influence on it, so plans that do the same with these share it.
        """
        feeds, corrections, keys, count = None, None, dict[str, str](), 0
        if self.calibration is not None and plan.needs_targets:
            count = self._count(images)
            keys = self._keys(plan, count)
            corrections = self._known(keys)
            if any(self._fits.get(key) is None for key in keys.values()):
                feeds = FeedsOf(self.calibration.take(count))
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
            self._keep(keys, rewritten.corrections, count)
        return rewritten

    def shaped(self, plan: Plan, *, fallback: bool = False) -> Rewritten:
        """The model rewritten by a plan, for what does not depend on values: any corrections will do."""
        counts = sorted(self._fits.counts, reverse=True) if plan.needs_targets else []
        known = (n for n in counts if all(key in self._fits.kept for key in self._keys(plan, n).values()))
        return self.rewrite(plan, fallback=fallback, images=next(known, 1))

    def corrections(self, plan: Plan, images: int) -> Corrections:
        """What is kept of the layers of a plan, fitted by so many images."""
        return self._known(self._keys(plan, self._count(images)))

    def remember(self, plan: Plan, images: int, corrections: Corrections) -> None:
        """Keep what was found for the layers of a plan by so many images."""
        count = self._count(images)
        self._keep(self._keys(plan, count), corrections, count)

    def _count(self, images: int | None) -> int:
        return min(images or REPAIR_IMAGES, len(self.calibration) if self.calibration is not None else 0)

    def _known(self, keys: Mapping[str, str]) -> Corrections:
        found = (self._fits.get(key) for key in keys.values())
        return {name: correction for each in found if each is not None for name, correction in each.items()}

    def _keep(self, keys: Mapping[str, str], corrections: Corrections, count: int) -> None:
        by_layer: dict[str, Corrections] = {}
        for name, correction in corrections.items():
            # a layer that stands in another's place is named after it
            owner = max((layer for layer in keys if name == layer or name.startswith(f"{layer}.")), key=len, default="")
            by_layer.setdefault(owner, {})[name] = correction
        for layer, key in keys.items():
            if layer in by_layer:
                self._fits.put(key, by_layer[layer], count)

    def _keys(self, plan: Plan, count: int) -> dict[str, str]:
        """For each layer of a plan that is fitted, what its correction depends on."""
        if not self._influence:
            self._influence.update(influences(self._workspace()))
        methods = {name: json.dumps(method.to_json(), sort_keys=True) for name, method in plan.layers.items()}
        keys = {}
        for name, method in plan.layers.items():
            if method.needs is Needs.TARGETS:
                on = sorted((other, methods[other]) for other in self._influence.get(name, ()) if other in methods)
                keys[name] = digest(json.dumps([name, methods[name], plan.seed, count, on]))
        return keys

    def _workspace(self) -> Workspace:
        """The model as methods see it before anything is decided."""
        if not self._opened:
            self._opened.append(opened(self.original()))
        return self._opened[0]

    def able(self, layers: Sequence[str], method: Method, seed: int) -> list[str]:
        """Those of the layers that a method can replace; a pooling-structure mask, say, needs a pool behind it."""
        return [layer.name for layer in self._able(layers, method, seed)]

    def promising(self, layers: Sequence[str], method: Method, seed: int) -> list[str]:
        """Those of them that a search should try the method with, one by one."""
        return [layer.name for layer in self._able(layers, method, seed) if method.promises(layer)]

    def _able(self, layers: Sequence[str], method: Method, seed: int) -> list[Layer]:
        return able(Context(self._workspace(), seed, self.impact_maps), layers, method)

    def layers(self) -> list[Layer]:
        """All that methods may replace, matrix products too, in running order."""
        return [layer for layer in all_layers(self._workspace()) if not layer.obstacle]

    def inspect(self) -> Inspection:
        """The model's convolutions."""
        return inspect(self.source, input_shapes=self.input_shapes, freeze_weights=self.freeze_weights)

    def original(self) -> LoadedModel:
        """The model as it came, with the sizes that were given."""
        return load_fixed(self.source, self.input_shapes, freeze=self.freeze_weights)

    def serialized(self) -> bytes:
        """The original as bytes that are the same for the same model."""
        return self.original().proto.SerializeToString(deterministic=True)
