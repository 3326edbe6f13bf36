"""A method is one file: an invented one is known to plans, to rewriting, to reports and to the search."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from rich.console import Console

import perfonnx
from perfonnx import PerfonnxError, Plan, methods
from perfonnx.corrections import Correction, digest
from perfonnx.methods import (
    METHODS,
    Context,
    Fitted,
    Method,
    Needs,
    Space,
    Spot,
    StandardMethod,
    setting,
    standard_conv,
)
from perfonnx.methods.perforate import Perforate
from perfonnx.model.layers import Layer
from perfonnx.ops.common import ConvAttributes
from perfonnx.render import render_report
from perfonnx.report import html_report
from perfonnx.search import Speed, tune
from perfonnx.search.sensitivity import Space as Choices
from tests.passes import nets
from tests.passes.nets import node
from tests.search.arrays import Arrays


@pytest.fixture(autouse=True)
def invented() -> Iterator[type[Method]]:
    """A method that is known while a test runs."""

    @dataclass(frozen=True)
    class Principal(StandardMethod):
        """Two convolutions in a layer's place: the responses' principal components, and what mixes them.

        Attributes:
            rank: Components.
        """

        NAME = "principal"
        ADJECTIVE = "principal"
        SUMMARY = "the principal components of the responses, then a 1x1 convolution that mixes them"

        rank: int = setting(2, "number of components", "K", written=True)

        def check(self, where: str) -> None:
            if not isinstance(self.rank, int) or self.rank < 1:
                raise PerfonnxError(f"{where}: rank {self.rank!r} is not a whole number from 1 up")

        @property
        def needs(self) -> Needs:
            return Needs.TARGETS

        def check_data(self, name: str, context: Context) -> None:
            if context.feeds is None and name not in context.corrections:
                raise PerfonnxError(f"layer {name!r} is to be decomposed, but there is no data; give --data")

        def obstacle(self, layer: Layer, context: Context) -> str | None:
            outputs = layer.w_shape[0]
            return f"it has {outputs} outputs: rank {self.rank} saves nothing" if self.rank * 2 > outputs else None

        def replaced(self, spot: Spot) -> Fitted:
            layer, note = spot.layer, "decomposed as before"
            assert layer.attributes is not None
            if spot.targets is None:
                correction = spot.context.corrections[spot.name]
                assert correction.weights == digest(spot.weight)
            else:
                correction, note = self._fitted(spot), f"rank {self.rank}"
            components, mean = correction.arrays["components"], correction.arrays["mean"]  # [M, rank], [M]
            first = standard_conv(
                spot,
                "components",
                spot.node.inputs[0],
                np.einsum("mr,mchw->rchw", components, spot.weight),
                layer.attributes,
                components.T @ (spot.bias - mean),
            )
            mixing = components[:, :, None, None]
            second = standard_conv(spot, "mixed", first.outputs[0], mixing, ConvAttributes((1, 1)), mean)
            return Fitted(correction, note, [first, second])

        def _fitted(self, spot: Spot) -> Correction:
            assert spot.targets is not None
            responses = [target for _, _, target, _ in spot.targets.values(spot.name, settled=True)]
            rows = np.concatenate([np.moveaxis(r, 1, -1).reshape(-1, r.shape[1]) for r in responses])
            mean = rows.mean(axis=0)
            _, _, turned = np.linalg.svd(rows - mean, full_matrices=False)
            return Correction.of(spot.weight, {"components": turned[: self.rank].T, "mean": mean}, 0.0, 0.0)

        @classmethod
        def candidates(cls, space: Space) -> Sequence[Method]:
            return [cls(rank) for rank in (2, 4)]

        @property
        def saving(self) -> float:
            return 1 / (1 + self.rank)

    yield Principal
    del METHODS["principal"]


def network(rank: int = 2, *, opset: int = 17) -> ModelProto:
    """Three layers; the responses of the second one have this rank, and a BatchNormalization follows it."""
    low = nets.values(16, rank, seed=1) @ nets.values(rank, 8 * 9, seed=2)
    weights = {"w1": nets.values(8, 3, 3, 3), "w2": low.reshape(16, 8, 3, 3), "w3": nets.values(8, 16, 3, 3)}
    scale = np.linspace(0.5, 2, 16, dtype=np.float32)
    nodes = [
        nets.conv("x", "a", "w1", name="conv1"),
        node("Relu", ["a"], ["ra"]),
        nets.conv("ra", "b", "w2", name="conv2"),
        node("BatchNormalization", ["b", "scale", "scale", "scale", "scale"], ["n"]),
        node("Relu", ["n"], ["rb"]),
        nets.conv("rb", "y", "w3", name="conv3"),
    ]
    return nets.model(nodes, {**weights, "scale": scale}, opset=opset)


def batches() -> list[dict[str, np.ndarray]]:
    return [nets.feed(4, 3, 12, 10, seed=seed) for seed in range(3)]


def output(model: ModelProto) -> np.ndarray:
    return nets.run(model, nets.feed())


def test_a_layer_of_low_rank_becomes_two(tmp_path: Path) -> None:
    model = network()
    result = perfonnx.rewrite(model, method="principal", only="conv2", samples=batches())
    assert nets.op_types(result.proto) == ["Conv", "Relu", "Conv", "Conv", "Relu", "Conv"]
    nets.check(result.proto)
    np.testing.assert_allclose(output(result.proto), output(model), atol=2e-5)
    (layer,) = result.report.layers
    before, after = 16 * 8 * 9 * 120, (2 * 8 * 9 + 16 * 2) * 120
    assert (layer.name, layer.multiplies) == ("conv2", (before, after))
    assert layer.notes == ("folded BatchNormalization", "rank 2")
    assert result.report.multiplies[0] - result.report.multiplies[1] == before - after
    assert not any(imported.domain == "ai.perfonnx" for imported in result.proto.opset_import)
    assert result.proto.ir_version == model.ir_version
    result.save_plan(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["layers"] == {"conv2": {"method": "principal", "rank": 2}}
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == result.to_bytes()


def test_what_it_refuses_is_said() -> None:
    result = perfonnx.rewrite(network(), method="principal", rank=6, only="conv", samples=batches())
    skips = {skip.layer: skip.reason for skip in result.report.skips}
    assert skips == dict.fromkeys(("conv1", "conv3"), "it has 8 outputs: rank 6 saves nothing")
    with pytest.raises(PerfonnxError, match="layer 'conv2' is to be decomposed, but there is no data"):
        perfonnx.rewrite(network(), method="principal", only="conv2")
    with pytest.raises(PerfonnxError, match="options: rank 0 is not a whole number"):
        perfonnx.rewrite(network(), method="principal", rank=0)
    with pytest.raises(PerfonnxError, match="layer 'conv2': rank 'two' is not"):
        Plan.from_json({"perfonnx_plan": 1, "layers": {"conv2": {"method": "principal", "rank": "two"}}})


def test_a_second_run_knows_where_layers_come_from() -> None:
    first = perfonnx.rewrite(network(), method="principal", only="conv2", samples=batches())
    second = perfonnx.rewrite(first.proto, rate=0.0)
    reasons = {skip.layer: skip.reason for skip in second.report.skips}
    assert [reasons[name] for name in ("conv2.components", "conv2.mixed")] == [
        "already rewritten: it comes from conv2/principal"
    ] * 2
    entries = {n.name: {p.key: p.value for p in n.metadata_props} for n in first.proto.graph.node}
    assert entries["conv2.mixed"] == {"perfonnx.from": "conv2/principal"}


@pytest.mark.parametrize("layout", ["rows", "nchw"])
def test_a_plan_goes_on_with_the_new_layers(invented: type[Any], layout: str, tmp_path: Path) -> None:
    chain = methods.Chain((invented(2), Perforate(0.5, "uniform")))
    plan = Plan({"conv2": chain, "conv3": Perforate(0.5, "uniform")}, layout=layout)
    result = perfonnx.rewrite(network(), plan=plan, samples=batches())
    assert [layer.name for layer in result.report.layers] == ["conv3", "conv2"]
    assert [n.op_type for n in nets.ours(result.proto)].count("PerforatedConv") == (3 if layout == "nchw" else 0)
    (layer,) = (layer for layer in result.report.layers if layer.name == "conv2")
    assert layer.multiplies[1] == (2 * 8 * 9 + 16 * 2) * 60
    result.save_plan(tmp_path / "plan.json")
    assert perfonnx.rewrite(network(), plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()
    text = json.loads((tmp_path / "plan.json").read_text())["layers"]["conv2"]
    assert [step["method"] for step in text] == ["principal", "perforate"]
    nets.check(result.proto)
    output(result.proto)


def test_nothing_follows_a_sampled_layer(invented: type[Any]) -> None:
    plan = {"conv2": [{"method": "perforate"}, {"method": "principal"}]}
    with pytest.raises(
        PerfonnxError, match="layer 'conv2', step 1: nothing can follow it; perforated layers come last"
    ):
        Plan.from_json({"perfonnx_plan": 1, "layers": plan})


def test_it_is_in_reports_lists_and_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = perfonnx.rewrite(network(), method="principal", only="conv2", samples=batches())
    console = Console(width=200)
    with console.capture() as printed:
        console.print(render_report(result.report))
    assert "principal" in printed.get()
    assert "rank 2" in printed.get()
    assert "- `principal`: the principal components" in methods.markdown_list()
    from perfonnx.cli import main

    onnx.save(network(), tmp_path / "m.onnx")
    np.save(tmp_path / "d.npy", np.concatenate([batch["x"] for batch in batches()]))
    flags = ["--method", "principal", "--rank", "4", "--only", "conv2", "--data", str(tmp_path / "d.npy"), "--json"]
    assert main(["rewrite", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["plan"] == {"method": "principal", "rank": 4}
    assert main(["rewrite", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--rank", "4"]) == 2
    assert "--rank 4: has no meaning without its --method: " in capsys.readouterr().err


class ByFormula:
    """Times by a formula, in place of measurements: a layer takes less by what its method asks to leave out."""

    def speed(self, plan: Plan, *, seconds: float = 2.0) -> Speed:
        ratio = 1 / (1 - sum(0.3 * method.saving for method in plan.layers.values()))
        return Speed(ratio, ratio * 0.999, ratio * 1.001, 10 / ratio, 10.0, 9)

    def layers(self, plan: Plan) -> dict[str, float]:
        names = ("conv1", "conv2", "conv3")
        return dict.fromkeys(names, 3.0) | {n: 3 * (1 - m.saving) for n, m in plan.layers.items()} | {"(other)": 1.0}


def test_a_search_chooses_it(invented: type[Any]) -> None:
    """Among all candidates it is the one that loses nothing in the layer that is of low rank."""
    assert invented(2) in Choices().choices()
    assert invented(2) not in Choices(methods=("perforate",)).choices()
    images = np.concatenate([nets.feed(4, 3, 12, 10, seed=seed)["x"] for seed in range(8)])
    data = Arrays("x", images, None, 1)
    choices = Choices(rates=(0.5,), masks=("grid",), methods=("perforate", "principal", "sparse"))
    tuned = tune(network(), None, data, max_drop="1%", timer=ByFormula(), space=choices)
    assert tuned.plan.layers == {"conv2": invented(2)}
    assert tuned.reached
    assert "principal" in html_report(tuned)
    assert "principal" in json.dumps(tuned.to_json())
