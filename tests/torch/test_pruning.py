"""Channel pruning first, activation sparsity after it, with Torch-Pruning as its users run it."""

from __future__ import annotations

import numpy as np

from tests.extras import needs

torch = needs("torch")
torch_pruning = needs("torch_pruning")

from torch import nn  # noqa: E402

import perfonnx  # noqa: E402
import perfonnx.torch  # noqa: E402
from perfonnx.data.inputs import InputSpec  # noqa: E402
from perfonnx.data.samples import Samples  # noqa: E402
from perfonnx.methods.sparse import Sparse  # noqa: E402
from perfonnx.plan import Plan  # noqa: E402
from perfonnx.torch import SparsitySchedule, finetune  # noqa: E402
from tests.torch.test_applying import EXAMPLE, Small  # noqa: E402


def pruned() -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        torch.cat([EXAMPLE, EXAMPLE]),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.head],
    )
    pruner.step()
    return model


def test_a_pruned_network_is_sparsified_and_exported() -> None:
    model = pruned()
    assert model.first.out_channels == 4
    plan = Plan({name: Sparse(0.3, "propagated") for name in ("first", "block.0", "last")})
    perfonnx.torch.apply(model, plan, EXAMPLE)
    images = np.random.default_rng(0).standard_normal((32, 3, 12, 10)).astype(np.float32)
    labels = np.arange(32) % 5
    specs = [InputSpec("x", ("batch", 3, 12, 10), np.dtype(np.float32))]
    samples = Samples.load(images, specs, labels=labels)
    before = [p.detach().clone() for p in model.parameters()]
    finetune(model, samples, schedules=[SparsitySchedule(model)], epochs=2, batch=8, validate=0.0)
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    rewritten = perfonnx.torch.export(model)
    assert {name: round(float(1 - mask.mean()), 1) for name, mask in rewritten.masks.items()} == dict.fromkeys(
        plan.layers, 0.3
    )
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    session = perfonnx.session(rewritten.to_bytes())
    (found,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
