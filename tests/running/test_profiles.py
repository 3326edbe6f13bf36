"""The layer behind each name in onnxruntime's profile."""

from __future__ import annotations

from onnx import helper

from perfonnx.running.profiles import CONVERSIONS, Names, layer_times
from tests.models import small


def test_names_that_onnxruntime_makes_up() -> None:
    names = Names(small.classifier())
    keys = names.keys(
        iter(
            [
                ("r1_nchwc", "Conv"),
                ("ReorderOutput_token_5", "ReorderOutput"),
                ("InsertedPrecisionFreeCast_s2_nchwc", "Conv"),
                ("InsertedPrecisionFreeCast_x", "Cast"),
                ("fc/MatMulAddFusion", "Gemm"),
                ("pool", "GlobalAveragePool"),
                ("something_else", "Transpose"),
            ]
        )
    )
    assert keys == {
        "r1_nchwc": "conv1",
        "ReorderOutput_token_5": CONVERSIONS,
        "InsertedPrecisionFreeCast_s2_nchwc": "conv2",
        "InsertedPrecisionFreeCast_x": CONVERSIONS,
        "fc/MatMulAddFusion": "fc",
        "pool": "pool",
        "something_else": "something_else",
    }


def test_a_residual_sum_belongs_to_the_convolution_that_lost_its_name() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="main"),
        helper.make_node("Conv", ["x", "v"], ["b"], name="shortcut"),
        helper.make_node("Add", ["a", "b"], ["s"], name="sum"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    model = small.make(nodes, {}, input_shape=[1], output_shape=[1])
    for own, other in (("a", "main"), ("b", "shortcut")):
        keys = Names(model).keys(iter([(f"{own}_nchwc", "Conv"), ("y_nchwc", "Conv")]))
        assert keys[f"{own}_nchwc"] == other
        assert keys["y_nchwc"] == ({"main", "shortcut"} - {other}).pop()


def test_layer_times_are_medians_of_the_last_runs() -> None:
    events: list[dict[str, object]] = [{"name": "session_initialization", "cat": "Session", "ts": 0, "dur": 5}]
    for run, micro in enumerate((900, 10, 20, 60)):  # the first run is warm-up
        start = 1000 * (run + 1)
        events.append({"name": "model_run", "cat": "Session", "ts": start, "dur": 950})
        for part in range(2):  # a node that runs twice in a run, as in a loop, counts with its sum
            event = {"cat": "Node", "name": "conv1_kernel_time", "ts": start + part, "dur": micro}
            events.append({**event, "args": {"op_name": "Conv"}})
        events.append({"cat": "Node", "name": "conv1_fence_before", "ts": start, "dur": 7, "args": {"op_name": "Conv"}})
    assert layer_times(events, Names(small.classifier()), 3) == {"conv1": ("Conv", 0.04)}
