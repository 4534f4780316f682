"""The polynomial in SiLU's place, computed as OpenVINO does: by Horner's rule in float32."""

import numpy as np
import numpy.typing as npt
import pytest

from batchdet.model.runtimes.silu import COEFFICIENTS, LIMIT


def polynomial(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    values = x.astype(np.float32)
    bounded = np.clip(values, np.float32(-LIMIT), np.float32(LIMIT))
    square, total = bounded * bounded, np.float32(COEFFICIENTS[-1])
    for coefficient in COEFFICIENTS[-2::-1]:
        total = square * total + np.float32(coefficient)
    found: npt.NDArray[np.float32] = values * (bounded * total + np.float32(0.5))
    return found


@pytest.mark.parametrize(("begin", "end", "bound"), [(0, 5, 6e-4), (5, 20, 3.5e-3), (20, 600, 600 / 15_000)])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_as_near_as_is_said(begin: float, end: float, bound: float, sign: int) -> None:
    x = sign * np.linspace(begin, end, 200_001)
    exact = x / (1 + np.exp(np.minimum(-x, 700)))
    assert np.abs(polynomial(x) - exact).max() < bound


def test_it_is_continuous() -> None:
    steps = np.diff(polynomial(np.linspace(-20, 20, 400_001)).astype(np.float64))
    assert np.abs(steps).max() < 2e-3, "rounding near the limit, and no jump there"
    assert polynomial(np.zeros(1))[0] == 0
