"""Sizes and ranges: what is written is what is read, and what cannot be meant is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import LONGEST_SIDE, SpatialRange, format_shape, parse_shape

SIDES = st.tuples(*[st.integers(1, LONGEST_SIDE)] * 3)


@given(SIDES)
def test_parse_shape_is_the_inverse_of_format_shape(shape: tuple[int, int, int]) -> None:
    assert parse_shape(format_shape(shape)) == shape


@pytest.mark.parametrize(
    "text",
    ["", "64", "64x64", "64x64x64x64", "64X64X64", "64x64x", "-1x64x64", "64x64x64 ", "6.4x64x64", "٦٤x64x64", "a"],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(RefusedInput, match="is not a size"):
        parse_shape(text)


@pytest.mark.parametrize("text", ["0x64x64", "64x64x1025", "9999x1x1"])
def test_impossible_sides_are_refused(text: str) -> None:
    with pytest.raises(RefusedInput, match=f"'{text}': every side must be 1 to 1024 voxels"):
        parse_shape(text)


@given(st.tuples(SIDES, SIDES, SIDES))
def test_range_parse_is_the_inverse_of_str(axes: tuple[tuple[int, int, int], ...]) -> None:
    low, best, high = zip(*(sorted(axis) for axis in axes), strict=True)
    served = SpatialRange(low, best, high)
    assert SpatialRange.parse(str(served)) == served
    assert served.min in served and served.opt in served and served.max in served


def test_range_as_text() -> None:
    served = SpatialRange.parse("48x64x64:64x128x128:96x192x192")
    assert served == SpatialRange((48, 64, 64), (64, 128, 128), (96, 192, 192))
    assert str(served) == "48x64x64:64x128x128:96x192x192"


@pytest.mark.parametrize("text", ["", "64x64x64", "64x64x64:64x64x64", "64x64x64:" * 3 + "64x64x64"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(RefusedInput, match="is not a range; write MIN:OPT:MAX"):
        SpatialRange.parse(text)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("65x64x64:64x64x64:96x96x96", "D"),
        ("64x64x64:64x97x64:96x96x96", "H"),
        ("64x64x64:64x64x64:96x96x63", "W"),
    ],
)
def test_a_range_out_of_order_is_refused_with_its_axis(text: str, axis: str) -> None:
    with pytest.raises(RefusedInput, match=f"axis {axis} needs min <= opt <= max"):
        SpatialRange.parse(text)


def test_contains() -> None:
    served = SpatialRange.parse("48x64x64:64x128x128:96x192x192")
    assert (50, 64, 192) in served
    assert (47, 64, 64) not in served and (96, 192, 193) not in served


def test_within() -> None:
    served = SpatialRange.parse("48x64x64:64x128x128:96x192x192")
    assert served.within(served) == served
    smaller = SpatialRange.parse("64x64x64:64x64x64:64x160x160")
    assert served.within(smaller) == SpatialRange((64, 64, 64), (64, 128, 128), (64, 160, 160))
    with pytest.raises(RefusedInput, match="have no size in common"):
        served.within(SpatialRange.parse("16x16x16:16x16x16:32x32x32"))


def test_a_range_too_small_for_the_network_is_refused() -> None:
    served = SpatialRange.parse("33x17x64:64x64x64:96x96x96")
    served.check_network(17)
    with pytest.raises(RefusedInput, match=r"at 33x17x64 a level .* smallest size it takes is 33x33x33"):
        served.check_network(33)
