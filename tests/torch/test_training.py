"""The training loop: what it minimizes, that it repeats itself, and that it goes on where it was interrupted."""

from __future__ import annotations

import copy
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.extras import needs

torch = needs("torch")

from torch import Tensor, nn  # noqa: E402

from perfonnx.data.inputs import InputSpec  # noqa: E402
from perfonnx.data.samples import Samples  # noqa: E402
from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.search import Progress  # noqa: E402
from perfonnx.torch import Settings, finetune  # noqa: E402
from perfonnx.torch.batches import Batches, augmented  # noqa: E402
from perfonnx.torch.losses import distillation, find_loss, relative_error  # noqa: E402
from perfonnx.torch.training import learning_rate  # noqa: E402

CLASSES = 4

torch.set_num_threads(1)


class Halved(nn.Conv2d):
    """A layer whose second row of each two repeats the first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :, ::2].repeat_interleave(2, dim=2)


def dense(*, normalized: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(8)] if normalized else []
    layers = [nn.Conv2d(3, 8, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.weight.data *= 3  # so that its outputs depend on the images
    if normalized:
        network[1].momentum = None  # averages all batches
        network(torch.from_numpy(images().pick(range(96)).feeds["x"]))
        network[1].momentum = 0.1
    return network.eval()


def halved(network: nn.Sequential) -> nn.Sequential:
    """A copy whose first layer is replaced, as `perfonnx.torch.apply` does it."""
    student = copy.deepcopy(network)
    layer = Halved(3, 8, 3, padding=1)
    layer.load_state_dict(network[0].state_dict())
    student[0] = layer
    return student


def images(count: int = 96, *, labels: Any = None) -> Samples:
    """Smooth images."""
    coarse = np.random.default_rng(0).standard_normal((count, 3, 2, 3)).astype(np.float32)
    x = np.kron(coarse, np.ones((1, 1, 4, 2), np.float32))
    return Samples.load(x, [InputSpec("x", ("N", 3, 8, 6), np.dtype(np.float32))], labels=labels, batch=10)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def held_out(history: Any) -> list[float]:
    return [epoch.held_out for epoch in history.epochs]


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_student_comes_closer_to_its_teacher(optimizer: str) -> None:
    teacher = dense()
    student, kept = halved(teacher), weights(teacher)
    history = finetune(
        student, images(), teacher=teacher, epochs=6, batch=8, lr=0.01, validate=0.2, optimizer=optimizer
    )
    assert history.loss == "logits"
    assert history.before is not None
    assert min(held_out(history)) < 0.5 * history.before
    assert history.best == 1 + int(np.argmin(held_out(history)))
    assert not student.training
    torch.testing.assert_close(weights(teacher), kept, rtol=0, atol=0)


def test_labels_alone_teach_a_student_without_teacher() -> None:
    x = np.random.default_rng(1).standard_normal((80, 3, 8, 6)).astype(np.float32)
    x[40:, 0] += 2
    spec = InputSpec("x", ("N", 3, 8, 6), np.dtype(np.float32))
    samples = Samples.load(x, [spec], labels=[0] * 40 + [3] * 40)
    history = finetune(dense(), samples, epochs=8, batch=8, lr=0.05, validate=0.2)
    assert history.before is not None
    assert held_out(history)[-1] < 0.2 < history.before


def test_the_weights_of_the_best_epoch_are_kept_even_if_they_are_the_first_ones() -> None:
    teacher = dense()
    student = copy.deepcopy(teacher)
    kept = weights(student)
    history = finetune(student, images(labels=[1] * 96), teacher=teacher, label_weight=0.0, epochs=2, lr=0.1)
    assert (history.best, history.before) == (0, pytest.approx(0, abs=1e-6))
    torch.testing.assert_close(weights(student), kept, rtol=0, atol=0)


def test_patience_ends_training_that_brings_nothing() -> None:
    teacher = dense()
    samples = images(labels=np.random.default_rng(2).integers(0, CLASSES, 96).tolist())
    student = copy.deepcopy(teacher)
    history = finetune(student, samples, teacher=teacher, held_out=images(12), epochs=9, patience=2, lr=0.0)
    assert len(history.epochs) == 2


def test_labels_that_are_mixed_in_change_the_result() -> None:
    teacher = dense()
    results = []
    for weight in (0.0, 0.5):
        student = halved(teacher)
        finetune(student, images(labels=[2] * 96), teacher=teacher, label_weight=weight, epochs=1, batch=8)
        results.append(float(student(torch.zeros(1, 3, 8, 6)).detach().softmax(1)[0, 2]))
    assert results[1] > results[0] + 0.01


def test_intermediate_layers_are_compared_with_the_teachers() -> None:
    teacher = dense()
    x = torch.from_numpy(images().pick(range(96)).feeds["x"])
    errors = []
    for weight in (0.0, 10.0):
        student = halved(teacher)
        finetune(student, images(), teacher=teacher, intermediate=weight, epochs=4, batch=8, lr=0.01, validate=0)
        errors.append(float(relative_error(student[0](x), teacher[0](x)).detach()))
        assert not student[0]._forward_hooks
        assert not teacher[0]._forward_hooks
    assert errors[1] < 0.9 * errors[0]


def test_networks_that_are_no_classifiers_learn_by_squared_error() -> None:
    teacher = dense()[:3]
    student = halved(dense())[:3]
    history = finetune(student, images(), teacher=teacher, epochs=4, batch=8, lr=0.02, validate=0.2)
    assert history.loss == "squared-error"
    assert history.before is not None
    assert held_out(history)[-1] < 0.9 * history.before


def test_batch_normalization_goes_on_averaging_or_stays_frozen() -> None:
    teacher = dense(normalized=True)
    for how, changed in (("update", True), ("frozen", False)):
        student = halved(teacher)
        finetune(student, images(), teacher=teacher, epochs=1, batch=16, batch_norm=how, validate=0)
        assert torch.equal(student[1].running_mean, teacher[1].running_mean) != changed
        assert not torch.equal(student[1].weight, teacher[1].weight)


def test_bfloat16_learns_too_and_keeps_weights_in_float32() -> None:
    teacher = dense()
    student = halved(teacher)
    history = finetune(student, images(), teacher=teacher, epochs=4, batch=8, precision="bfloat16", validate=0.2)
    assert {value.dtype for value in student.state_dict().values()} == {torch.float32}
    assert history.before is not None
    assert held_out(history)[-1] < 0.7 * history.before


# --- losses ----------------------------------------------------------------------------------------------------------


def test_the_loss_follows_the_outputs() -> None:
    logits = torch.randn(5, 7)
    assert find_loss([logits]) == find_loss([logits[:, :, None, None]]) == "logits"
    assert find_loss([logits.softmax(1)]) == "probabilities"
    for others in ([logits, logits], [torch.rand(5, 1)], [torch.rand(5, 3, 4, 4)], [torch.rand(5)]):
        assert find_loss(others) == "squared-error"


def test_distillation() -> None:
    a, b = torch.randn(2, 6, 5, dtype=torch.float64).float()
    p, q = a.softmax(1), b.softmax(1)
    wanted = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation([b], [a], "logits", 1.0), wanted)
    torch.testing.assert_close(distillation([q], [p], "probabilities", 1.0), wanted, rtol=1e-4, atol=1e-6)
    soft = 9 * distillation([b / 3], [a / 3], "logits", 1.0)
    torch.testing.assert_close(distillation([b], [a], "logits", 3.0), soft)
    two = distillation([a + 1, b * 2], [a, b], "squared-error", 1.0)
    torch.testing.assert_close(two, 1 / a.var(correction=0) + b.square().mean() / b.var(correction=0))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(step, 200) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == 1
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert learning_rate(0, 1) == 1


# --- data ------------------------------------------------------------------------------------------------------------


def test_batches_are_the_same_from_memory_and_from_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.array([7, 3, 95])
    (held,), labels = Batches(images(labels=range(96))).pick(places)
    monkeypatch.setattr("perfonnx.torch.batches.HELD_BYTES", 0)
    (read,), _ = Batches(images(labels=range(96))).pick(places)
    assert torch.equal(held, read)
    assert labels is not None
    assert labels.tolist() == [7, 3, 95]


def test_augmentation() -> None:
    x = torch.arange(1.0, 1 + 40 * 3 * 9 * 7).reshape(40, 3, 9, 7)
    assert augmented([x], "none")[0] is x
    torch.manual_seed(0)
    (flipped,) = augmented([x], "flip")
    same = (flipped == x).flatten(1).all(1)
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 8 < int(same.sum()) < 32
    torch.manual_seed(0)
    (cropped,) = augmented([x], "crop+flip")
    moves = set()
    for image, source in zip(cropped, flipped, strict=True):
        padded = nn.functional.pad(source, (4,) * 4)
        found = [(i, j) for i in range(9) for j in range(9) if torch.equal(padded[:, i : i + 9, j : j + 7], image)]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 20
    with pytest.raises(PerfonnxError, match="augmentation flip: only for models with one input"):
        augmented([x.permute(0, 2, 3, 1)], "flip")


# --- schedules -------------------------------------------------------------------------------------------------------


class Shrink:
    """Pulls the first weight to zero; settled in the last quarter."""

    def __init__(self, network: nn.Sequential) -> None:
        self.weight = network[0].weight
        self.seen: list[float] = []
        self.frozen = False

    @property
    def settled(self) -> bool:
        return self.seen[-1:] > [0.74]

    def before_step(self, progress: float) -> None:
        self.seen.append(progress)

    def loss(self) -> Tensor:
        return 10 * self.weight.square().sum()

    def freeze(self) -> None:
        self.frozen = True

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


def test_schedules_see_the_progress_and_add_to_the_loss() -> None:
    teacher = dense()
    student = halved(teacher)
    schedule = Shrink(student)
    history = finetune(
        student, images(), teacher=teacher, epochs=4, batch=24, lr=0.05, validate=0, schedules=[schedule]
    )
    assert schedule.seen == pytest.approx(np.arange(16) / 16)
    assert schedule.frozen
    assert student[0].weight.norm() < 0.8 * teacher[0].weight.norm()
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_epochs_count_only_when_schedules_are_settled() -> None:
    teacher = dense()
    student = copy.deepcopy(teacher)
    options = {"epochs": 4, "batch": 24, "held_out": images(10), "patience": 1}
    history = finetune(student, images(), teacher=teacher, schedules=[Shrink(student)], **options)
    assert history.before == pytest.approx(10 * float(teacher[0].weight.square().sum()))
    assert len(history.epochs) == history.best == 4


# --- repeating and going on ------------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {"epochs": 3, "batch": 16, "augment": "crop+flip", "validate": 0.2, "lr": 0.02}


def test_the_same_seed_gives_the_same_weights() -> None:
    teacher = dense(normalized=True)
    results = []
    for seed in (3, 3, 4):
        student = halved(teacher)
        torch.manual_seed(len(results))
        before = torch.random.get_rng_state()
        finetune(student, images(), teacher=teacher, seed=seed, **RECIPE)
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(weights(student))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def interrupt_at(number: int) -> Any:
    """A progress callback that presses Ctrl-C at a step."""
    count = 0

    def step(progress: Progress) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGINT)

    return step


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("step", [1, 4, 6, 12])
def test_an_interrupted_training_ends_at_the_same_weights(tmp_path: Path, step: int, optimizer: str) -> None:
    teacher = dense(normalized=True)
    recipe = {**RECIPE, "optimizer": optimizer}
    student = halved(teacher)
    shrink = Shrink(student)
    whole = finetune(student, images(), teacher=teacher, schedules=[shrink], **recipe)
    wanted = weights(student)
    assert whole.best > 0

    file = tmp_path / "checkpoint"
    student = halved(teacher)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        finetune(
            student,
            images(),
            teacher=teacher,
            schedules=[Shrink(student)],
            checkpoint=file,
            progress=interrupt_at(step),
            **recipe,
        )
    assert signal.getsignal(signal.SIGINT) is before
    assert list(tmp_path.iterdir()) == [file]
    student = halved(teacher)
    again = Shrink(student)
    options = {"teacher": teacher, "schedules": [again], "checkpoint": file, "resume": True, **recipe}
    resumed = finetune(student, images(), **options)
    assert torch.equal(weights(student), wanted)
    assert again.seen == shrink.seen
    assert [(e.loss, e.held_out) for e in resumed.epochs] == [(e.loss, e.held_out) for e in whole.epochs]
    student = halved(teacher)
    finished = finetune(student, images(), **{**options, "schedules": [Shrink(student)]})
    assert finished == resumed
    assert torch.equal(weights(student), wanted)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    teacher, file = dense(), tmp_path / "checkpoint"
    recipe: dict[str, Any] = {"teacher": teacher, "epochs": 1, "checkpoint": file}
    finetune(halved(teacher), images(), resume=True, **recipe)
    with pytest.raises(PerfonnxError, match=r"checkpoint .*: is there already; resume from it"):
        finetune(halved(teacher), images(), **recipe)
    with pytest.raises(PerfonnxError, match=r"the checkpoint of another training \(batch differs\)"):
        finetune(halved(teacher), images(), resume=True, batch=8, **recipe)
    with pytest.raises(PerfonnxError, match=r"another training \(network differs\)"):
        finetune(halved(dense(normalized=True)), images(), resume=True, **recipe)
    content = file.read_bytes()
    flipped = [bytearray(content) for _ in range(20)]
    for damaged, place in zip(flipped, np.linspace(30, len(content) - 1, 20).astype(int), strict=True):
        damaged[place] ^= 4
    for damaged in (content[: len(content) // 2], content + b"x", *map(bytes, flipped)):
        file.write_bytes(damaged)
        with pytest.raises(PerfonnxError, match="is damaged; delete it"):
            finetune(halved(teacher), images(), resume=True, **recipe)
    for other in (b"", b"no checkpoint"):
        file.write_bytes(other)
        with pytest.raises(PerfonnxError, match="not a checkpoint of this version of perfonnx"):
            finetune(halved(teacher), images(), resume=True, **recipe)
    torch.save({"weights": torch.zeros(1)}, file)
    with pytest.raises(PerfonnxError, match="not a checkpoint of this version of perfonnx"):
        finetune(halved(teacher), images(), resume=True, **recipe)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"epochs": 0}, "epochs 0: give 1 or more"),
        ({"precision": "float16"}, "unknown precision 'float16'; choose from float32, bfloat16"),
        ({"augment": "mixup"}, "choose from none, flip, crop\\+flip"),
        ({"label_weight": 1.5}, "label_weight 1.5: give 0 to 1"),
        ({"lr": -1.0}, "lr -1: give 0 or more"),
        ({"lr": float("nan")}, "lr nan: give 0 or more"),
        ({"learning": 1}, "unknown setting: .*learning"),
        ({"label_weight": 0.5}, "there are no labels to learn from"),
        ({"lr": 1e30, "intermediate": 0.0}, "the loss is not finite in epoch 1, step .: try a lower learning rate"),
        ({"settings": Settings(), "epochs": 2}, "give settings or keywords, not both"),
    ],
)
def test_mistakes_are_named(choices: dict[str, Any], message: str) -> None:
    teacher = dense()
    with pytest.raises(PerfonnxError, match=message):
        finetune(halved(teacher), images(), **{"teacher": teacher, "batch": 8, **choices})


def test_networks_that_cannot_learn() -> None:
    teacher = dense()
    with pytest.raises(PerfonnxError, match="there are no labels to learn from"):
        finetune(halved(teacher), images())
    with pytest.raises(PerfonnxError, match="label_weight 0: without a teacher"):
        finetune(halved(teacher), images(), label_weight=0.0)
    with pytest.raises(PerfonnxError, match="shares weights with the student"):
        finetune(nn.Sequential(*teacher), images(), teacher=teacher)
    with pytest.raises(PerfonnxError, match="label 4: the model has the classes 0 to 3"):
        finetune(halved(teacher), images(labels=[4] * 96))
    with pytest.raises(PerfonnxError, match="label -1: the model has the classes 0 to 3"):
        finetune(halved(teacher), images(labels=[0, -1] * 48))
    with pytest.raises(PerfonnxError, match="no parameters to train"):
        finetune(nn.Flatten(), images(), teacher=nn.Flatten())
    with pytest.raises(PerfonnxError, match="labels train a classifier"):
        finetune(dense()[:3], images(labels=[0] * 96))
