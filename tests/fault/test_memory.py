"""What the driver holds in memory hardly grows with the number of images."""

import pytest

from benchmarks.growth import measure_run

FEW, MANY = 2_000, 100_000


@pytest.mark.fault
@pytest.mark.timeout(1200)
@pytest.mark.acceptance("R31")
def test_the_driver_of_100000_tiny_images() -> None:
    """On a quiet machine 245 MiB were measured with 100,000 images, 153 MiB with 1,000."""
    few, many = measure_run(FEW), measure_run(MANY)
    print(few, many)
    assert (few["images"], many["images"]) == (FEW, MANY)
    assert many["driver_mib"] < 400
    assert many["driver_mib"] - few["driver_mib"] < 150, "a kilobyte and a half for each further image"
