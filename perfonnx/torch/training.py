"""Fine-tuning: the training loop for networks with rewritten layers.

By default the student learns from the unmodified network, its teacher, so that no labels are needed. Everything random
follows from the seed and the number of the step: a training that was interrupted ends at the same weights.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from perfonnx.data.samples import Samples
from perfonnx.errors import PerfonnxError
from perfonnx.search import Progress
from perfonnx.torch.batches import AUGMENTATIONS, Batches, Item, augmented
from perfonnx.torch.checkpoints import Checkpoint, Interrupts
from perfonnx.torch.losses import LOSSES, Intermediate, class_scores, distillation, find_loss, tensors
from perfonnx.torch.modules import FittedConv2d, RadiusAdaptiveConv2d

PRECISIONS = ("float32", "bfloat16")
BATCH_NORMS = ("update", "frozen")
OPTIMIZERS = {"sgd": 0.02, "adamw": 3e-4}
"""Optimizers by name, with the learning rates where none is given."""

AUTO = "auto"

MOMENTUM = 0.9
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""

LAST_RATE = 0.01
"""What the learning rate falls to, as a part of its highest value."""

GATE_RATE = 10
"""Learning rate of gates' biases, as a multiple: they have far to go while the weights hardly change."""

CLIP = 1.0
"""Largest norm of the gradient."""


class Schedule(Protocol):
    """What changes the network while it trains, such as masks or budgets, and what that adds to the loss."""

    @property
    def settled(self) -> bool:
        """Whether the network is as it is going to be kept; only from then on are epochs compared."""

    def before_step(self, progress: float) -> None:
        """Called before each step with the share of the training that is over, in [0, 1)."""

    def loss(self) -> Tensor | None:
        """What the last forward pass adds to the loss."""

    def freeze(self) -> None:
        """Called when all steps are done."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here: tensors and plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        epochs: Passes over the data.
        batch: Samples per step.
        optimizer: `sgd`, with momentum; `adamw`; or `auto`: `adamw` where layers go on from what they were fitted with,
            else `sgd`.
        lr: Highest learning rate, which is reached after a short warm-up and falls along a cosine; None: by the
            optimizer.
        weight_decay: Of weights; biases and what else has one dimension have none.
        loss: One of `LOSSES`: the Kullback-Leibler divergence of classes, from logits or probabilities, or the squared
            error; `auto` by what the network gives.
        temperature: Of classes' probabilities when the student learns from a teacher.
        label_weight: Share of the labels' cross-entropy in the loss, in [0, 1]; the teacher has the rest. None: 0
            with a teacher, 1 without.
        intermediate: Weight of the error of replaced layers against the teacher's, in units of its variance. On a small
            ResNet with all layers perforated 1 brought more than 0.1, and 4 next to no more.
        augment: One of `AUGMENTATIONS`. Mirrored pictures suit most photographs, but not digits or text.
        precision: `float32`, or `bfloat16` for most of the arithmetic, on machines with instructions for it.
        device: `cpu`, `cuda` or what else PyTorch knows.
        validate: Share of the samples that are held out to compare epochs by; 0: none, the last epoch counts.
        patience: Epochs without a better one after which the training ends.
        batch_norm: `update`: batch normalization uses each batch's statistics and goes on averaging them, which suits
            layers whose outputs have changed; `frozen`: as at inference, for small batches.
        seed: Seed of everything random.
    """

    epochs: int = 5
    batch: int = 64
    optimizer: str = AUTO
    lr: float | None = None
    weight_decay: float = 1e-4
    loss: str = "auto"
    temperature: float = 2.0
    label_weight: float | None = None
    intermediate: float = 1.0
    augment: str = "none"
    precision: str = "float32"
    device: str = "cpu"
    validate: float = 0.05
    patience: int = 5
    batch_norm: str = "update"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "patience"):
            if getattr(self, name) < 1:
                raise PerfonnxError(f"{name} {getattr(self, name)}: give 1 or more")
        for name, known in (
            ("optimizer", (AUTO, *OPTIMIZERS)),
            ("loss", LOSSES),
            ("augment", AUGMENTATIONS),
            ("precision", PRECISIONS),
            ("batch_norm", BATCH_NORMS),
        ):
            if getattr(self, name) not in known:
                raise PerfonnxError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(known)}")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise PerfonnxError(f"unknown device {self.device!r}; give cpu or cuda") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise PerfonnxError(f"device {self.device}: PyTorch finds no such GPU; use cpu")
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("temperature", 1e-3, math.inf),
            ("label_weight", 0.0, 1.0),
            ("intermediate", 0.0, math.inf),
            ("validate", 0.0, 0.9),
            ("seed", 0, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bound = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
                raise PerfonnxError(f"{name} {value:g}: give {bound}")


@dataclass(frozen=True)
class Epoch:
    """One pass over the data.

    Attributes:
        loss: Mean over the steps, all its parts.
        held_out: Loss on the held-out samples, without that of intermediate layers; None where there are none.
        seconds: What it took.
    """

    loss: float
    held_out: float | None
    seconds: float


@dataclass
class History:
    """How a training went.

    Attributes:
        loss: What was minimized, one of `LOSSES` but `auto`.
        before: Loss on the held-out samples of the network as it came.
        epochs: One by one.
        best: Number of the epoch, from 1, whose weights the network has; 0: those that it came with.
    """

    loss: str
    before: float | None = None
    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> History:
        """From what `to_json` gave."""
        return cls(data["loss"], data["before"], [Epoch(**epoch) for epoch in data["epochs"]], data["best"])


def finetune(
    student: nn.Module,
    samples: Samples,
    *,
    teacher: nn.Module | None = None,
    held_out: Samples | None = None,
    schedules: Sequence[Schedule] = (),
    settings: Settings | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **choices: Any,
) -> History:
    """Train a network in place; in the end it has the weights of its best epoch, and is in evaluation mode.

    Args:
        student: The network; it takes a batch of each of the samples' inputs.
        samples: What it learns from. Labels count as `Settings.label_weight` says.
        teacher: The unmodified network; None: it learns from labels alone.
        held_out: Samples to compare epochs by; None: part of `samples`, drawn by the seed, see `Settings.validate`.
        schedules: What changes the network while it trains.
        settings: How; its fields may also be given as keywords (`epochs=10, lr=0.02`).
        checkpoint: File to go on from, written after each epoch and when the training is interrupted.
        resume: Go on from the checkpoint where it is there.
        about: What the training is about beside its settings, plain data; the checkpoint of another is refused.
        progress: Called now and then.
        **choices: Fields of `Settings`.

    Raises:
        PerfonnxError: Bad usage or input, or the training diverges.
        KeyboardInterrupt: Interrupted; the checkpoint has been written, if one was asked for.
    """
    if settings is not None and choices:
        raise PerfonnxError(f"give settings or keywords, not both ({', '.join(choices)})")
    try:
        settings = settings or Settings(**choices)
    except TypeError as error:
        raise PerfonnxError(f"unknown setting: {error}") from error
    file = Checkpoint(checkpoint, resume, dict(about or {}))
    file.check()
    if held_out is None:
        samples, held_out = split(samples, settings)
    device = torch.device(settings.device)
    for network in (student, teacher):
        if network is not None:
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data, held = Batches(samples), None if held_out is None else Batches(held_out)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        objective = stack.enter_context(Objective(student, teacher, settings))
        interrupts = stack.enter_context(Interrupts())
        training = _Training(objective, data, held, schedules, settings, progress)
        return training.run(file, interrupts)


def split(samples: Samples, settings: Settings) -> tuple[Samples, Samples | None]:
    """The samples to learn from, and those to hold out, drawn by the seed."""
    count = round(len(samples) * settings.validate)
    if count == 0:
        return samples, None
    return samples.split(len(samples) - count, count, settings.seed)


class Objective:
    """The loss of a batch; a context in which layers are compared too.

    Raises:
        PerfonnxError: There is nothing to learn from.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, settings: Settings) -> None:
        self.student = student
        self.teacher = None if teacher is None else teacher.eval()
        self.settings = settings
        self.device = torch.device(settings.device)
        self.kind = settings.loss
        given = settings.label_weight
        self.label_weight = (1.0 if teacher is None else 0.0) if given is None else given
        if teacher is None and self.label_weight < 1:
            raise PerfonnxError(f"label_weight {self.label_weight:g}: without a teacher there are the labels alone")
        if teacher is not None and {*student.parameters()} & {*teacher.parameters()}:
            raise PerfonnxError("the teacher shares weights with the student and would change too; give it a copy")
        compared = teacher if settings.intermediate > 0 else None
        self._layers = None if compared is None else Intermediate(student, compared)

    def __enter__(self) -> Objective:
        if self._layers is not None:
            self._layers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._layers is not None:
            self._layers.__exit__(*error)

    def __call__(self, item: Item) -> Tensor:
        """The loss of a batch; that of layers is in it while the student is in training mode."""
        inputs, labels = item
        inputs = [
            x.to(self.device, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
            for x in inputs
        ]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            with torch.no_grad():
                wanted = None if self.teacher is None else tensors(self.teacher(*inputs))
            outputs = tensors(self.student(*inputs))
        if self.kind == "auto":
            self.kind = find_loss(outputs if wanted is None else wanted)
        parts = []
        if wanted is not None and self.label_weight < 1:
            distance = distillation(outputs, wanted, self.kind, self.settings.temperature)
            parts.append(distance * (1 - self.label_weight))
        if self.label_weight > 0:
            parts.append(self.label_weight * self._of_labels(outputs, labels))
        of_layers = None if self._layers is None else self._layers.take()
        if of_layers is not None:
            parts.append(self.settings.intermediate * of_layers)
        return torch.stack(parts).sum()

    def _of_labels(self, outputs: list[Tensor], labels: Tensor | None) -> Tensor:
        if labels is None:
            raise PerfonnxError("there are no labels to learn from; give them, or learn from a teacher alone")
        scores = class_scores(outputs, self.kind)
        wrong = labels[(labels < 0) | (labels >= scores.shape[1])]
        if len(wrong):
            raise PerfonnxError(f"label {int(wrong[0])}: the model has the classes 0 to {scores.shape[1] - 1}")
        return functional.cross_entropy(scores, labels.to(self.device))

    @torch.no_grad()
    def mean(self, batches: Batches, schedules: Sequence[Schedule] = ()) -> float:
        """The mean loss of samples, in evaluation mode."""
        self.student.eval()
        total = 0.0
        for start in range(0, len(batches), self.settings.batch):
            places = np.arange(start, min(start + self.settings.batch, len(batches)))
            loss = self(batches.pick(places)) + _added(schedules)
            total += float(loss) * len(places)
        return total / len(batches)


def _added(schedules: Sequence[Schedule]) -> Tensor | float:
    return sum((loss for schedule in schedules if (loss := schedule.loss()) is not None), 0.0)


class _Training:
    """The loop, and where it is."""

    def __init__(
        self,
        objective: Objective,
        data: Batches,
        held: Batches | None,
        schedules: Sequence[Schedule],
        settings: Settings,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.objective = objective
        self.student = objective.student
        self.data = data
        self.held = held
        self.schedules = schedules
        self.settings = settings
        self.progress = progress or (lambda _: None)
        self.batch = min(settings.batch, len(data))
        self.steps = len(data) // self.batch
        self.optimizer = _optimizer(self.student, settings)
        self.epoch, self.step = 0, 0
        self.losses = 0.0
        self.history = History(settings.loss)
        self.best: dict[str, Tensor] | None = None
        self.best_loss = math.inf
        self.started = time.perf_counter()
        self.steps_done = 0

    def run(self, checkpoint: Checkpoint, interrupts: Interrupts) -> History:
        """Train to the end, or to an interrupt."""
        checkpoint.about |= self._about()
        known = checkpoint.load()
        if known is None:
            self._judge(None)
        else:
            self._load(known)
        while self.epoch < self.settings.epochs and not self._given_up():
            start = time.perf_counter()
            for places in self._places():
                self._step(places)
                if interrupts.pending:
                    checkpoint.save(self._state())
                    raise KeyboardInterrupt
            self.epoch, self.step = self.epoch + 1, 0
            self._judge(time.perf_counter() - start)
            checkpoint.save(self._state())
            if interrupts.pending:
                raise KeyboardInterrupt
        if self.best is not None:
            self.student.load_state_dict(self.best)
        self.student.eval()
        self.history.loss = self.objective.kind
        return self.history

    def _places(self) -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        """The rest of the epoch, batch by batch; what does not fill a batch is left out this time."""
        order = np.random.default_rng([self.settings.seed, self.epoch]).permutation(len(self.data))
        for step in range(self.step, self.steps):
            yield order[step * self.batch : (step + 1) * self.batch]

    def _step(self, places: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        done = self.epoch * self.steps + self.step
        total = self.settings.epochs * self.steps
        torch.manual_seed(int(np.random.SeedSequence([self.settings.seed, done]).generate_state(1)[0]))
        for schedule in self.schedules:
            schedule.before_step(done / total)
        rate = learning_rate(done, total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * rate
        self._train_mode()
        inputs, labels = self.data.pick(places)
        loss = self.objective((augmented(inputs, self.settings.augment), labels)) + _added(self.schedules)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PerfonnxError(
                f"the loss is not finite in epoch {self.epoch + 1}, step {self.step + 1}: try a lower learning rate"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIP)
        self.optimizer.step()
        self.losses += value
        self.step += 1
        self.steps_done += 1
        self._tell()

    def _train_mode(self) -> None:
        self.student.train()
        if self.settings.batch_norm == "frozen":
            for module in self.student.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _judge(self, seconds: float | None) -> None:
        """Looks at the held-out samples, after an epoch or (None) before the first one, and keeps the best weights."""
        if self.epoch == self.settings.epochs:
            for schedule in self.schedules:
                schedule.freeze()
        loss = None if self.held is None else self.objective.mean(self.held, self.schedules)
        if seconds is None:
            self.history.before = loss
        else:
            self.history.epochs.append(Epoch(self.losses / self.steps, loss, seconds))
            self.losses = 0.0
        settled = all(schedule.settled for schedule in self.schedules)
        if self.held is None:
            self.history.best = self.epoch
        elif settled and loss is not None and loss < self.best_loss:
            self.history.best, self.best_loss = self.epoch, loss
            self.best = {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    def _given_up(self) -> bool:
        settled = self.best is not None
        return settled and self.epoch - self.history.best >= self.settings.patience

    def _tell(self) -> None:
        left = self.settings.epochs * self.steps - self.epoch * self.steps - self.step
        seconds = (time.perf_counter() - self.started) / self.steps_done * left
        best = "" if self.best_loss == math.inf else f"{self.best_loss:.4g}"
        phase = f"epoch {self.epoch + 1} of {self.settings.epochs}"
        self.progress(Progress(phase, self.step, self.steps, seconds, best))

    def _about(self) -> dict[str, Any]:
        """What a checkpoint is about; patience and the device may change."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in ("patience", "device")}
        weights = {name: list(value.shape) for name, value in self.student.state_dict().items()}
        return {**settings, "samples": len(self.data), "network": weights}

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "kind": self.objective.kind,
            "history": self.history.to_json(),
            "best_loss": self.best_loss,
            "best": self.best,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedules": [schedule.state_dict() for schedule in self.schedules],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        self.objective.kind = state["kind"]
        self.history = History.from_json(state["history"])
        self.best_loss, self.best = state["best_loss"], state["best"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        for schedule, known in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(known)


def _optimizer(student: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise PerfonnxError("the network has no parameters to train")
    fitted = any(isinstance(module, FittedConv2d) for module in student.modules())
    kind = ("adamw" if fitted else "sgd") if settings.optimizer == AUTO else settings.optimizer
    rate = OPTIMIZERS[kind] if settings.lr is None else settings.lr
    adaptive = [module for module in student.modules() if isinstance(module, RadiusAdaptiveConv2d)]
    gates, biases = {id(module.gate) for module in adaptive}, {id(module.gate_bias) for module in adaptive}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in parameters:
        decay = settings.weight_decay if p.ndim > 1 and id(p) not in gates else 0.0
        highest = rate * GATE_RATE if id(p) in biases else rate
        groups.setdefault((decay, highest), []).append(p)
    given = [{"params": ps, "weight_decay": decay, "highest": highest} for (decay, highest), ps in groups.items()]
    if kind == "adamw":
        return torch.optim.AdamW(given, lr=rate)
    return torch.optim.SGD(given, lr=rate, momentum=MOMENTUM)


def learning_rate(step: int, steps: int) -> float:
    """The learning rate at a step as a part of its highest value: a linear warm-up, then a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    fallen = (1 - math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
    return 1 - (1 - LAST_RATE) * fallen
