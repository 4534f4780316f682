"""The fault suite shares the fixtures of the end-to-end tests: one Ray, the command line, packed photographs."""

from tests.e2e.conftest import cli, one_ray, photographs, run

__all__ = ["cli", "one_ray", "photographs", "run"]
