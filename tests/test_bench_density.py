"""The bench of sparse models against their density: a line has every density, and its table their shares."""

from __future__ import annotations

from bench import bench_density


def test_a_line_and_its_table() -> None:
    line = bench_density.measure((12, 9, 0.5, "relu"), repeats=1, seconds=0.0)
    assert line["key"] == "12 → 9, S = 0.5, ReLU codes"
    assert list(line["microseconds"]) == ["dense", "0.5", "0.25", "0.1", "0.05"]
    assert all(value > 0 for values in line["microseconds"].values() for value in values)
    made = {"key": "a", "microseconds": {"dense": [8.0, 10.0, 90.0], "0.5": [5.0], "0.25": [2.0]}}
    assert "| a | 10 | 5 (0.50) | 2 (0.20) |" in bench_density.render([made])
