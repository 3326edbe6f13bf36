"""Divides the time that a search may take: by what measurements took so far, and by how many images they look at.

Everything here follows from numbers that are kept in the records: a search that was interrupted decides the same again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from perfonnx.search.state import Records
from perfonnx.subject import REPAIR_IMAGES

PROFILE, TRIAL, REFIT, VERIFICATION = "profile", "trial", "refit", "verification"
"""Kinds of measurements; a network some of whose regions are refitted takes longer than others."""

PROFILE_SHARE, SCREEN_SHARE = 0.25, 0.35
"""Parts of the time in which layers are profiled, and in which their errors are measured."""

TRIALS = 16
"""Whole networks that all of the time should be enough for; they look at as many images as leave it so."""

REFITS = 20
"""Networks with regions that all of the time should be enough for; they are refitted by as many images as allow it."""

REFIT_IMAGES = 1000
"""Images that regions are refitted by, at most."""

REGION_SHARE = 0.5
"""Part of the time in which regions are tried, where layers are sampled one by one too."""

REPAIR_SHARE = 1 / 12
"""Repairing a network by one image may take this part of the time; where it takes longer nothing is repaired."""

HELD_BACK_SHARE = 1 / 12
"""Part of the time for running both networks on the images held back."""

FEWEST = 8, 4
"""Images to choose by and to verify on, at least."""

SCREENING = 4, 12, 128
"""Images that layers are screened by: at least, where the time allows it, and at most."""

REPAIRED_LAYER, REFITTED_LAYER, SCREENED_LAYER = 1.0, 0.7, 2.0
"""Runs of the network that repairing or refitting one layer by one image takes, and screening one, roughly."""

TIMED_PAIRS, TIMED_SECONDS, FINAL_SECONDS = 7, 2.0, 5.0
"""Pairs of runs that a timing takes of slow networks, and its seconds otherwise; and those of the last one."""


@dataclass(frozen=True)
class Sizes:
    """How many images measurements look at.

    Attributes:
        choosing: Of those to choose by.
        held_back: Of those that the choice does not see.
        repairing: To repair whole networks by; 0 where there is no time for repairs.
        refitting: To refit regions by; 0 where there is no time for it.
        batch: Images that the model takes at once; the other numbers are multiples of it.
    """

    choosing: int
    held_back: int
    repairing: int
    refitting: int = 0
    batch: int = 1

    @classmethod
    def within(
        cls,
        max_time: float,
        seconds: float,
        *,
        layers: int,
        convs: int = 0,
        choosing: int,
        held_back: int,
        fitting: int | None = None,
        batch: int = 1,
    ) -> Sizes:
        """As many images as the time allows.

        Args:
            max_time: Seconds of the whole search.
            seconds: What the original takes for one image.
            layers: How many may be repaired.
            convs: How many may be refitted.
            choosing: Images to choose by that there are.
            held_back: Images held back that there are.
            fitting: Images that are there to repair and refit by; None: those to choose by, and nothing is refitted.
            batch: Images that the model takes at once; numbers are multiples of it.
        """

        def rounded(affordable: float, fewest: int, most: int) -> int:
            wanted = int(min(max(affordable, fewest), most))
            return min(math.ceil(wanted / batch) * batch, most)

        seconds = max(seconds, 1e-9)
        half = max_time / TRIALS / 2
        repair = REPAIRED_LAYER * max(layers, 1) * seconds
        repairable = repair * batch <= REPAIR_SHARE * max_time
        refit = REFITTED_LAYER * max(convs, 1) * seconds
        refittable = fitting and refit * batch <= REPAIR_SHARE * max_time
        return cls(
            rounded(half / seconds, FEWEST[0], choosing),
            rounded(HELD_BACK_SHARE * max_time / (2 * seconds), FEWEST[1], held_back),
            rounded(half / repair, 1, min(REPAIR_IMAGES, fitting or choosing)) if repairable else 0,
            rounded(max_time / REFITS / refit, 1, min(REFIT_IMAGES, fitting or 0)) if refittable else 0,
            batch,
        )


@dataclass
class Pace:
    """What measurements take, and what there is time for.

    Attributes:
        records: Their clock counts.
        max_time: Seconds of the whole search.
        expected: Seconds that a measurement takes, by kind: what was expected first, then what the last two took.
        begun: Where parts of the time are counted from: what came before has had its own.
    """

    records: Records
    max_time: float
    expected: dict[str, float]
    begun: float = 0.0
    _last: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(
        cls, records: Records, max_time: float, seconds: float, *, layers: int, sizes: Sizes, convs: int = 0
    ) -> Pace:
        """What is to be expected by the time that the original takes for one image."""
        timing = 2 * TIMED_PAIRS * seconds
        expected = {
            PROFILE: max(1.0, timing),
            TRIAL: seconds * (2 * sizes.choosing + REPAIRED_LAYER * layers * sizes.repairing)
            + max(timing, TIMED_SECONDS),
            REFIT: seconds * (2 * sizes.choosing + REFITTED_LAYER * convs * sizes.refitting)
            + max(timing, TIMED_SECONDS),
            VERIFICATION: 2 * seconds * sizes.held_back + max(timing, FINAL_SECONDS),
        }
        return cls(records, max_time, expected)

    @property
    def left(self) -> float:
        """Seconds until the time given is used up, never negative."""
        return max(self.max_time - self.records.clock, 0.0)

    @contextmanager
    def measuring(self, kind: str) -> Iterator[None]:
        """A measurement of a kind; the next one is expected to take as long as the longer one of the last two."""
        before = self.records.clock
        yield
        self.took(kind, self.records.clock - before)

    def took(self, kind: str, took: float) -> None:
        """See `measuring`."""
        self.expected[kind] = max(took, self._last.get(kind, 0.0))
        self._last[kind] = took

    def foresee(self, kind: str, seconds: float) -> None:
        """A measurement of a kind that was not made yet takes this long, or longer."""
        if kind not in self._last:
            self.expected[kind] = max(seconds, self.expected[kind])

    def affords(self, *kinds: str, until: float = 1.0) -> bool:
        """Whether there is time for measurements of these kinds until that part of it is used up."""
        return self.records.clock + sum(self.expected[kind] for kind in kinds) <= self.end(until)

    def begin(self) -> None:
        """Counts parts of the time from now on."""
        self.begun = min(self.records.clock, self.max_time)

    def end(self, part: float) -> float:
        """The clock when a part of the time is over."""
        return self.begun + part * (self.max_time - self.begun)

    def screening(self, pairs: int, useful: int, seconds: float, available: int, batch: int = 1) -> int:
        """Images to screen layers by.

        Args:
            pairs: Layers with choices that should be screened at least.
            useful: Those that should be screened if there is time.
            seconds: What the original takes for one image.
            available: Images that there are.
            batch: The number is a multiple of it.
        """

        def affordable(count: int) -> float:
            time = SCREEN_SHARE * (self.max_time - self.begun)
            return time / max(count, 1) / (SCREENED_LAYER * max(seconds, 1e-9))

        fewest, enough, most = SCREENING
        wanted = int(max(min(affordable(useful), most), min(affordable(pairs), enough), fewest))
        return min(math.ceil(wanted / batch) * batch, available)
