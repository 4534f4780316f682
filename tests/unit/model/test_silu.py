"""The rational function in SiLU's place, computed as OpenVINO does: in float32."""

import numpy as np
import numpy.typing as npt
import pytest

from batchdet.model.runtimes.silu import DENOMINATOR, LIMIT, NUMERATOR


def rational(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    values = x.astype(np.float32)
    bounded = np.clip(values, np.float32(-LIMIT), np.float32(LIMIT))
    square = bounded * bounded
    above = bounded * (square * np.float32(NUMERATOR[1]) + np.float32(NUMERATOR[0]))
    below = square * (square + np.float32(DENOMINATOR[1])) + np.float32(DENOMINATOR[0])
    found: npt.NDArray[np.float32] = values * (above / below + np.float32(0.5))
    return found


@pytest.mark.parametrize(("begin", "end", "bound"), [(0, 2, 4e-4), (2, 20, 3e-3), (20, 600, 1e-4)])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_as_near_as_is_said(begin: float, end: float, bound: float, sign: int) -> None:
    x = sign * np.linspace(begin, end, 200_001)
    exact = x / (1 + np.exp(np.minimum(-x, 700)))
    assert np.abs(rational(x) - exact).max() < bound


def test_it_is_continuous() -> None:
    steps = np.diff(rational(np.linspace(-20, 20, 400_001)).astype(np.float64))
    assert np.abs(steps).max() < 2e-3, "rounding near the limit, and no jump there"
    assert rational(np.zeros(1))[0] == 0
