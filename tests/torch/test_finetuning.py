"""From a model to the rewritten, trained one, from Python and from the command line."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.extras import needs

torch = needs("torch")

import perfonnx  # noqa: E402
from perfonnx.alphas import alphas  # noqa: E402
from perfonnx.data.formats import PRESETS  # noqa: E402
from perfonnx.data.inputs import model_inputs  # noqa: E402
from perfonnx.data.samples import Samples  # noqa: E402
from perfonnx.errors import PerfonnxError  # noqa: E402
from perfonnx.methods import METHODS  # noqa: E402
from perfonnx.methods.perforate import Perforate  # noqa: E402
from perfonnx.methods.radius_adaptive import RadiusAdaptive  # noqa: E402
from perfonnx.methods.sparse import Sparse  # noqa: E402
from perfonnx.plan import Plan  # noqa: E402
from perfonnx.search import Progress  # noqa: E402
from perfonnx.torch import Settings, finetune_model  # noqa: E402
from tests import real_models  # noqa: E402
from tests.cli.running import run  # noqa: E402
from tests.search.test_tune import network, samples  # noqa: E402

torch.set_num_threads(1)

QUICK = Settings(epochs=3, batch=8, lr=0.003, validate=0.25)
FAST = ("--data", "data.npz", "--epochs", "2", "--batch", "16", "--validate", "0.25", "--lr", "0.003", "--threads", "1")


def data(count: int = 64, *, labels: bool = False) -> Samples:
    found = samples(count, labels=labels)
    return Samples.load(found.images, model_inputs(network()), labels=found.labels)


def weights(model: onnx.ModelProto) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]


# --- from Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["perforate", "sparse", "radius-adaptive"])
def test_the_result_is_closer_to_the_original_than_the_untrained_model(method: str, tmp_path: Path) -> None:
    layers = {name: METHODS[method](0.5, "propagated" if method == "sparse" else "grid") for name in ("conv2", "conv3")}
    if method == "radius-adaptive":
        layers = {name: METHODS[method](open_share=0.4) for name in layers}
    done = finetune_model(network(), tmp_path / "fast.onnx", data(), plan=Plan(layers), settings=QUICK)
    assert set(done.result.plan.layers) == set(layers)
    assert done.metric.name == "agreement"
    assert done.images == {"training": 48, "held out": 16}
    if method != "radius-adaptive":  # which starts as the original
        assert done.after.guide < 0.8 * done.before.guide
        assert done.rounds[0].best > 0
    session = perfonnx.session(tmp_path / "fast.onnx")
    x = data().pick(range(4)).feeds["x"]
    (trained,), (original,) = (s.run(None, {"x": x}) for s in (session, perfonnx.session(network())))
    assert trained.shape == original.shape
    assert np.abs(trained - original).max() > 1e-3
    onnx.checker.check_model(onnx.load(tmp_path / "fast.onnx"))


def test_what_was_measured_is_that_of_the_written_models() -> None:
    plan = Plan({"conv2": Perforate(0.5, "grid")})
    done = finetune_model(network(), None, data(labels=True), plan=plan, settings=QUICK)
    assert done.metric.name == "top1"
    held_out = data(labels=True).split(48, 16, 0)[1]
    for quality, model in ((done.before, perfonnx.rewrite(network(), plan=plan)), (done.after, done.result)):
        session = perfonnx.session(model.proto)
        answers = [session.run(None, batch.feeds)[0].reshape(-1, 5).argmax(1) for batch in held_out]
        assert quality.value == pytest.approx((np.concatenate(answers) == held_out.labels).mean())


def test_rates_rise_in_rounds() -> None:
    phases = []
    plan = Plan({"conv2": Perforate(0.6, "uniform")})
    done = finetune_model(
        network(), None, data(), plan=plan, settings=QUICK, rounds=3, progress=lambda p: phases.append(p.phase)
    )
    assert len(done.rounds) == 3
    assert len(phases) == 3 * 3 * 6
    assert 1 - done.result.masks["conv2"].mean() == pytest.approx(0.6, abs=0.01)
    once = finetune_model(network(), None, data(), plan=plan, settings=QUICK)
    assert any((a != b).any() for a, b in zip(weights(done.result.proto), weights(once.result.proto), strict=True))


def test_repairs_of_a_plan_are_left_out() -> None:
    plan = Plan({"conv2": Perforate(0.5, "grid", repair="predictor")})
    done = finetune_model(network(), None, data(), plan=plan, settings=QUICK)
    assert done.result.plan.layers["conv2"].repair == "none"
    assert plan.layers["conv2"].repair == "predictor"


def test_a_model_that_fixes_its_batch_is_trained_in_others() -> None:
    images = Samples.load(samples(64).images, model_inputs(network(2)))
    plan = Plan({"conv2": Perforate(0.5, "grid")})
    done = finetune_model(network(2), None, images, plan=plan, settings=QUICK)
    assert done.after.guide < done.before.guide
    free = finetune_model(network(), None, data(), plan=plan, settings=QUICK)
    for a, b in zip(weights(done.result.proto), weights(free.result.proto), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_result_with_trained_gates_is_trained_again(tmp_path: Path) -> None:
    plan = Plan({"conv2": RadiusAdaptive(open_share=0.5)})
    settings = replace(QUICK, epochs=1)
    once = finetune_model(network(), None, data(), plan=plan, settings=settings)
    once.result.save_plan(tmp_path / "plan.json")
    again = finetune_model(network(), None, data(), plan=tmp_path / "plan.json", settings=settings)
    assert again.result.plan.layers["conv2"].trained_gate


def test_the_open_share_is_that_of_the_weights_that_are_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "plan": Plan({"conv2": RadiusAdaptive(open_share=0.2)}),
        "settings": replace(QUICK, lr=0.1),
        "checkpoint": tmp_path / "state",
    }
    done = finetune_model(network(), None, data(), **options)
    (layer,) = alphas(done.result.proto, [data().split(48, 16, 0)[1].pick(range(16)).feeds]).layers
    assert done.result.report.layers[0].rate == pytest.approx(layer.zero, abs=0.01)
    assert layer.zero > 0.01
    resumed = finetune_model(network(), None, data(), resume=True, **options)
    assert resumed.result.to_bytes() == done.result.to_bytes()


def test_masks_from_a_file_stay(tmp_path: Path) -> None:
    mask = np.zeros((16, 14), bool)
    mask[::2] = True
    np.save(tmp_path / "mask.npy", mask)
    plan = Plan({"conv2": Sparse(mask=str(tmp_path / "mask.npy"))})
    done = finetune_model(network(), None, data(), plan=plan, settings=replace(QUICK, epochs=1))
    assert (done.result.masks["conv2"] == mask).all()


def test_sizes_that_the_model_and_the_plan_leave_open() -> None:
    model = network()
    for i, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[i].dim_param = name
    plan = Plan({"conv2": Perforate(0.5, "grid"), "head": Perforate(0.5, "grid")})
    shapes = {"x": ("N", 3, 16, 14)}
    settings = replace(QUICK, epochs=1)
    done = finetune_model(model, None, data(), plan=plan, settings=settings, input_shapes=shapes)
    assert list(done.result.plan.layers) == ["conv2"]
    assert done.result.plan.notes["head"] == "a single output position: nothing to skip"
    assert {skip.layer: skip.reason for skip in done.result.report.skips} == done.result.plan.notes


def replaceable(directory: Path) -> Path:
    """The model with weights that a caller may replace, in a file of their own."""
    model = network()
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    path = directory / "replaceable.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="replaceable.bin")
    return path


def test_weights_that_a_caller_may_replace_are_trained_where_they_are_frozen(tmp_path: Path) -> None:
    plan = Plan({"conv2": Perforate(0.5, "grid")})
    path, settings = replaceable(tmp_path), replace(QUICK, epochs=1)
    with pytest.raises(PerfonnxError, match="no layer is rewritten"):
        finetune_model(path, None, data(), plan=plan, settings=settings)
    result = finetune_model(path, None, data(), plan=plan, settings=settings, freeze_weights=True).result
    assert [value.name for value in result.proto.graph.input] == ["x"]
    expected = finetune_model(network(), None, data(), plan=plan, settings=settings).result
    for ours, theirs in zip(weights(result.proto), weights(expected.proto), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_command_freezes_weights(here: Path) -> None:
    replaceable(here)
    arguments = ("finetune", "replaceable.onnx", "out.onnx", "--rate", ".5", *FAST, "-q")
    assert run(*arguments) == 2
    assert run(*arguments, "--freeze-weights") == 0
    assert [value.name for value in onnx.load("out.onnx").graph.input] == ["x"]


def test_samples_in_the_order_of_their_classes_are_drawn_from_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perfonnx.torch.finetuning.GATED", 8)
    seen = []
    monkeypatch.setattr("perfonnx.torch.finetuning.start_gates", lambda student, x: seen.append(x))
    images = np.sort(samples(64).images.mean(axis=(1, 2, 3)))[:, None, None, None] * np.ones((1, 3, 16, 14), np.float32)
    plan = Plan({"conv2": RadiusAdaptive(open_share=0.5)})
    ordered = Samples.load(images, model_inputs(network()))
    finetune_model(network(), None, ordered, plan=plan, settings=replace(QUICK, epochs=1))
    assert seen[0].max() > np.median(images) > seen[0].min()


def test_a_model_without_numbers_to_learn_is_refused() -> None:
    model = network()
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["class"], axis=1, keepdims=0))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ["N", 1, 1]))
    plan = Plan({"conv2": Perforate(0.5, "grid")})
    with pytest.raises(PerfonnxError, match="the model gives whole numbers alone"):
        finetune_model(model, None, data(), plan=plan, settings=QUICK)


def test_checkpoints_of_all_rounds_are_looked_at_first(tmp_path: Path) -> None:
    plan = Plan({"conv2": Perforate(0.5, "grid")})
    (tmp_path / "state.2").touch()
    for file, wrong in (("state", "state.2: is there already"), ("nowhere/state", "there is no directory")):
        with pytest.raises(PerfonnxError, match=wrong):
            finetune_model(network(), None, data(), plan=plan, settings=QUICK, rounds=2, checkpoint=tmp_path / file)
        assert [path.name for path in tmp_path.iterdir()] == ["state.2"]


@pytest.mark.parametrize("steps", [4, 8])
def test_an_interrupted_run_makes_the_same_model(tmp_path: Path, steps: int) -> None:
    plan = Plan({"conv2": Sparse(0.5, "propagated")})
    count = 0

    def press(progress: Progress) -> None:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGINT)

    options: dict[str, Any] = {
        "plan": plan,
        "settings": Settings(epochs=1, batch=8, lr=0.003, validate=0.25),
        "rounds": 2,
    }
    wanted = finetune_model(network(), None, data(), **options)
    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        finetune_model(network(), tmp_path / "fast.onnx", data(), checkpoint=file, progress=press, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"state.{n}" for n in range(1, 2 + steps // 6)]
    found = finetune_model(network(), None, data(), checkpoint=file, resume=True, **options)
    assert found.result.to_bytes() == wanted.result.to_bytes()
    other = {**options, "plan": Plan({"conv2": Sparse(0.4, "propagated")})}
    with pytest.raises(PerfonnxError, match=r"another training \(plan differs\)"):
        finetune_model(network(), None, data(), checkpoint=file, resume=True, **other)


# --- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, with a model and data."""
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=samples(64).images, labels=np.arange(64) % 5)
    return tmp_path


def test_finetune_writes_a_model_a_plan_and_a_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--save-plan", "plan.json", "--report-json", "report.json", "--checkpoint", "state")
    assert run("finetune", "m.onnx", "out.onnx", "--rate", ".5", "--mask", "grid", *FAST, *files) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    report = json.loads((here / "report.json").read_text())
    drop = f"{100 * report['after']['drop']:.2f} points"
    assert f"16 samples held out, trained: top1 loses {drop}" in shown.out
    assert "a plan of it holds what was chosen" in " ".join(shown.out.split())
    assert len(report["rounds"][0]["epochs"]) == 2
    assert len(report["plan"]["layers"]) >= 3
    arguments = ("--plan", "plan.json", *FAST, "--seed", "3", "--json")
    assert run("finetune", "m.onnx", "again.onnx", *arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert set(again["plan"]["layers"]) == set(report["plan"]["layers"])
    onnx.checker.check_model(onnx.load("out.onnx"))


def test_a_plan_of_sublattices_is_saved_with_what_was_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--method", "sublattice", "--only", "conv[1-3]", *FAST, "--save-plan", "plan.json")
    assert run("finetune", "m.onnx", "out.onnx", *arguments) == 0
    assert run("rewrite", "m.onnx", "again.onnx", "--plan", "plan.json", "-q") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "a plan of it holds what was chosen" not in " ".join(shown.out.split())
    assert (here / "again.onnx").read_bytes() == (here / "out.onnx").read_bytes()


def test_interrupting_leaves_a_checkpoint_and_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(self: Any, progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    arguments = ("finetune", "m.onnx", "out.onnx", "--rate", ".5", *FAST, "--checkpoint", "state", "-q")
    with monkeypatch.context() as patch:
        patch.setattr("perfonnx.cli.output.SearchBar._step", press)
        assert run(*arguments) == 130
    assert capsys.readouterr().err == "perfonnx: interrupted; to go on from state, add --resume\n"
    assert (here / "state").exists()
    assert not (here / "out.onnx").exists()
    assert run(*arguments) == 2
    assert "state: is there already; resume from it" in capsys.readouterr().err
    assert run(*arguments, "--resume") == 0
    assert (here / "out.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "finetune measures on your data: add --data"),
        (("--data", "data.npz", "--rate", ".5", "--epochs", "0"), "epochs 0: give 1 or more"),
        (("--data", "data.npz", "--repair", "bias"), "unrecognized arguments: --repair bias"),
        (("--data", "data.npz", "--open-share", ".5"), "--open-share 0.5: has no meaning without its --method"),
        (("--data", "data.npz", "--resume"), "--resume needs --checkpoint"),
        (("--data", "data.npz", "--threads", "0"), "--threads 0: give 1 or more"),
        (("--data", "data.npz", "--rounds", "0"), "0 rounds: give 1 or more"),
        (("--data", "data.npz", "--precision", "half"), "unknown precision 'half'"),
        (("--data", "data.npz", "--device", "quantum"), "unknown device 'quantum'"),
        (("--data", "data.npz", "--checkpoint", "out.onnx"), "--checkpoint out.onnx: that is OUT"),
        (("--data", "data.npz", "--only", "nowhere"), "nowhere"),
        (("--data", "data.npz", "--validate", "0"), "0% of 64 samples is none to measure on"),
        (("--data", "data.npz", "--plan", "p.json", "--rate", ".5"), "--plan says everything"),
    ],
)
def test_mistakes_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("finetune", "m.onnx", "out.onnx", *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(path.name for path in here.iterdir()) == ["data.npz", "m.onnx"]


def test_without_pytorch_it_says_what_to_install(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("perfonnx.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run("finetune", "m.onnx", "out.onnx", "--data", "data.npz") == 2
    message = 'perfonnx: training needs PyTorch; install it with pip install "perfonnx[train]"\n'
    assert capsys.readouterr().err == message


# --- a real model ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_perforated_resnet_gets_better(tmp_path: Path) -> None:
    model = real_models.path("cifar10_resnet20")
    images = real_models.DATA / "images" / "cifar10_train_jpg.zip"
    inputs, normal = model_inputs(model), replace(PRESETS["imagenet"], size=())
    train = Samples.load(images, inputs, image_format=normal, labels="suffix").shuffled().take(1500)
    plan = perfonnx.rewrite(model, rate=0.5, mask="grid").plan
    settings = Settings(epochs=2, batch=32, validate=0.2)
    done = finetune_model(model, None, train, plan=plan, settings=settings)
    assert done.before.reference > 0.8
    assert done.after.guide < 0.7 * done.before.guide
    assert done.after.value > done.before.value
