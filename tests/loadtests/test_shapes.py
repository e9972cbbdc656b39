"""Locust's own view of shapes and users, in a process of its own: importing locust patches the standard library."""

import subprocess
import sys

PROGRAM = """
from locust import LoadTestShape
from loadtests import curves, shapes, users

assert isinstance(shapes.SustainedShape(), LoadTestShape) and isinstance(shapes.BurstShape(), LoadTestShape)
assert shapes.SustainedShape.curve.total == 300_000
assert shapes.BurstShape.curve.peak == 5000
shape = shapes.of(curves.burst(seconds=30), 7)
assert isinstance(shape, shapes.BurstShape) and shape.curve.seconds == 30
assert shape.tick() == (7, 100.0)
shape.is_over = True
assert shape.tick() is None
assert users.MatchFeed.fixed_count == 1
"""


def test_shapes_run_the_curves_and_end_with_the_plan() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
