"""Lines through measurements at several sizes, with parts that are known beforehand."""

from typing import Any

import pytest

from lhanet_export.bench.result import Bench, Device, Row
from lhanet_export.bench.scaling import Point, scaling, scalings
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import Shape


def on_a_line(*voxels: int, fixed: float = 0.5, each: float = 2e-6) -> list[Point]:
    return [Point(voxels=count, seconds=fixed + each * count, bytes=1_000_000_000 + 700 * count) for count in voxels]


def test_a_line_is_found_in_seconds_and_in_bytes() -> None:
    found = scaling("ours", on_a_line(1_000_000, 3_000_000, 500_000))
    assert found == {
        "name": "ours",
        "sizes": [500_000, 1_000_000, 3_000_000],
        "seconds_per_megavoxel": pytest.approx(2.0),
        "fixed_seconds": pytest.approx(0.5),
        "seconds_largest_residual": pytest.approx(0.0, abs=1e-9),
        "bytes_per_voxel": pytest.approx(700.0),
        "fixed_bytes": pytest.approx(1e9),
        "bytes_largest_residual": pytest.approx(0.0, abs=1e-9),
    }


def test_two_sizes_lie_on_a_line() -> None:
    found = scaling("ours", on_a_line(442_368, 1_048_576))
    assert found["fixed_seconds"] == pytest.approx(0.5)
    assert found["seconds_largest_residual"] == pytest.approx(0.0, abs=1e-9)


def test_no_part_is_negative() -> None:
    # A line through 1 s and 3 s would start at -1 s. Without a fixed part, each point's relative error counts: per unit
    # of size, b / 1 - 1 and 2 b / 3 - 1, of which the squares are least together at b = 15 / 13.
    growing = [Point(voxels=1_000_000, seconds=1.0, bytes=1), Point(voxels=2_000_000, seconds=3.0, bytes=1)]
    found = scaling("steep", growing)
    assert found["fixed_seconds"] == 0.0
    assert found["seconds_per_megavoxel"] == pytest.approx(15 / 13)
    assert found["seconds_largest_residual"] == pytest.approx(3 / 13)
    # The larger volume the faster: no time is spent on voxels; c - 1 and c / 0.5 - 1 are least together at c = 0.6.
    falling = [Point(voxels=1, seconds=1.0, bytes=1), Point(voxels=2, seconds=0.5, bytes=1)]
    found = scaling("odd", falling)
    assert found["seconds_per_megavoxel"] == 0.0
    assert found["fixed_seconds"] == pytest.approx(0.6)
    assert found["seconds_largest_residual"] == pytest.approx(0.4)


def test_the_residual_is_the_worst_relative_distance_from_the_line() -> None:
    points = on_a_line(1_000_000, 2_000_000, 3_000_000, fixed=0.0)
    # One size that takes 10 % longer: the line goes between, and no point is further off than that.
    points[1] = Point(voxels=2_000_000, seconds=4.4, bytes=points[1].bytes)
    found = scaling("ours", points)
    line = [found["fixed_seconds"] + found["seconds_per_megavoxel"] * size for size in (1, 2, 3)]
    worst = max(abs(at / point.seconds - 1) for at, point in zip(line, points, strict=True))
    assert found["seconds_largest_residual"] == pytest.approx(worst)
    assert 0.02 < worst < 0.1


def test_many_measurements_at_a_size_are_all_used() -> None:
    noisy = [Point(voxels=count, seconds=count * 1e-6 * off, bytes=1) for count in (1, 10) for off in (0.9, 1.1)]
    found = scaling("ours", noisy)
    # At both sizes: b / 0.9 - 1 and b / 1.1 - 1, of which the squares are least together where b is
    slope = (1 / 0.9 + 1 / 1.1) / (1 / 0.81 + 1 / 1.21)
    assert found["seconds_per_megavoxel"] == pytest.approx(slope)
    assert found["sizes"] == [1, 10]


@pytest.mark.parametrize("points", [[], on_a_line(1000), on_a_line(1000, 1000)])
def test_one_size_is_no_line(points: list[Point]) -> None:
    with pytest.raises(RefusedInput, match=r"ours: .* two sizes or more"):
        scaling("ours", points)


@pytest.mark.parametrize(
    "point",
    [
        Point(voxels=0, seconds=1.0, bytes=1),
        Point(voxels=5, seconds=0.0, bytes=1),
        Point(voxels=5, seconds=float("nan"), bytes=1),
        Point(voxels=5, seconds=float("inf"), bytes=1),
        Point(voxels=5, seconds=1.0, bytes=-1),
    ],
)
def test_numbers_that_no_measurement_gives_are_refused(point: Point) -> None:
    with pytest.raises(RefusedInput, match="ours: sizes, seconds and bytes have to be above zero"):
        scaling("ours", [*on_a_line(1000), point])


def a_bench(shape: Shape, **seconds: float) -> dict[str, Any]:
    made = Bench(
        date="2026-11-23",
        command="lhanet-export bench",
        machine={},
        device=Device(kind="cpu", name="a CPU", cores=2, memory_bytes=1),
        checkpoint={},
        shape=shape,
        threads=2,
        rounds=3,
        volumes=1,
        rows=[
            Row(
                name=name,
                precision="fp32",
                network="as-trained",
                reference_seconds=1.0,
                # The median counts.
                seconds=(0.0001, median, 99.0),
                ready_seconds=1.0,
                first_seconds=1.0,
                peak_bytes=1000 * shape[0],
                peak_kind="resident",
                relative_l2=0.0,
                label_agreement=1.0,
            )
            for name, median in seconds.items()
        ],
        skipped=[],
        work={},
    )
    return made.as_json()


def test_rows_are_followed_over_sizes_and_left_out_where_there_is_one_only() -> None:
    benches = [a_bench((10, 10, 10), eager=2.0, plain=5.0), a_bench((20, 10, 10), eager=4.0, ours=1.0)]
    facts = scalings(benches)
    assert facts is not None
    assert facts["points"] == [
        {"name": "eager", "voxels": 1000, "seconds": 2.0, "peak_bytes": 10_000},
        {"name": "eager", "voxels": 2000, "seconds": 4.0, "peak_bytes": 20_000},
    ]
    (found,) = facts["fits"]
    assert found["name"] == "eager"
    assert found["sizes"] == [1000, 2000]
    assert found["seconds_per_megavoxel"] == pytest.approx(2000.0)
    assert found["fixed_seconds"] == pytest.approx(0.0, abs=1e-9)
    assert found["bytes_per_voxel"] == pytest.approx(10.0)


def test_at_one_size_nothing_is_said() -> None:
    assert scalings([]) is None
    assert scalings([a_bench((10, 10, 10), eager=2.0)]) is None
