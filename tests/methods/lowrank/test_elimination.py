"""Columns that are left out, and what the others do about it."""

from __future__ import annotations

import numpy as np
import pytest

from perfonnx.methods.lowrank import elimination
from perfonnx.methods.lowrank.elimination import eliminated


def problem(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and inputs that say partly the same."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * columns, columns // 2)) @ rng.standard_normal((columns // 2, columns))
    return rng.standard_normal((16, columns)), x + 0.3 * rng.standard_normal(x.shape)


@pytest.mark.parametrize("size", [1, 3])
def test_the_weights_that_are_left_are_those_of_least_squares(size: int) -> None:
    weight, x = problem(420)
    kept, left = eliminated(weight, np.linalg.inv(x.T @ x), 420 // size, 60)
    columns = (kept[:, None] * size + np.arange(size)).reshape(-1)
    assert len(np.unique(kept)) == 60
    solved = np.linalg.lstsq(x[:, columns], x @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(left[:, columns], solved, atol=1e-6)
    assert not np.delete(left, columns, axis=1).any()


def test_several_at_once_lose_hardly_more_than_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = problem(420)
    inverse = np.linalg.inv(x.T @ x)

    def loss() -> float:
        return float(np.square(x @ (eliminated(weight, inverse, 420, 100)[1] - weight).T).sum())

    together = loss()
    monkeypatch.setattr(elimination, "CANDIDATES", 2)
    assert together < 1.02 * loss()
