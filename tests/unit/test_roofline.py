"""What a card can do at most, how much of it an inference used, and how fast none can be; worked out by hand."""

import itertools
from dataclasses import replace
from typing import Literal

import pytest

from lhanet_export.bench.cards import CARDS, PRECISIONS, Card, card_named
from lhanet_export.bench.result import Bench, Device, Row
from lhanet_export.bench.roofline import floor_seconds, floors, roofline, rooflines
from lhanet_export.errors import RefusedInput

GEFORCE = {
    "GeForce RTX 3060": (28, 1777),
    "GeForce RTX 3080": (68, 1710),
    "GeForce RTX 3090": (82, 1695),
    "GeForce RTX 4070": (46, 2475),
    "GeForce RTX 4090": (128, 2520),
    "GeForce RTX 5070": (48, 2512),
    "GeForce RTX 5090": (170, 2407),
}
#: 10 operations and 4 bytes a nanosecond in FP32; 20 and 40 operations in FP16, as it adds up.
CARD = Card(
    title="plain numbers",
    names=("NVIDIA Plain",),
    memory_gib=1,
    bandwidth_gbps=4.0,
    peaks={"fp32": 0.01, "fp16": 0.02, "fp16-fp16": 0.04, "int8": 0.08},
    quoted=frozenset(),
    source="none",
)
WORK = {"multiply_adds": 5_000_000_000, "moved_bytes": 2_000_000_000, "weight_bytes": 40_000_000}
FLOOR_WORK = WORK | {"input_bytes": 1_000_000, "output_bytes": 3_000_000}


def a_row(*seconds: float, precision: str = "fp32", network: Literal["as-trained", "ours"] = "ours") -> Row:
    return Row(
        name="ours",
        precision=precision,
        network=network,
        seconds=seconds,
        reference_seconds=1.0,
        ready_seconds=1.0,
        first_seconds=1.0,
        peak_bytes=1,
        peak_kind="process",
        relative_l2=0.0,
        label_agreement=1.0,
    )


def rtx3060() -> Card:
    card = card_named("NVIDIA GeForce RTX 3060")
    assert card is not None
    return card


# The table of cards


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.title)
def test_every_card_has_all_peaks_a_bandwidth_and_a_source(card: Card) -> None:
    assert tuple(card.peaks) == PRECISIONS
    assert min(*card.peaks.values(), card.bandwidth_gbps) > 0
    assert card.quoted <= {*PRECISIONS, "bandwidth"}
    assert card.source
    # Never faster in a wider format, nor when adding up in one; but for the rounding of what is quoted.
    order = [card.peaks[precision] for precision in ("fp32", "tf32", "fp16", "fp16-fp16", "int8")]
    assert all(wider <= 1.005 * narrower for wider, narrower in itertools.pairwise(order))
    assert card.peaks["bf16"] == pytest.approx(card.peaks["fp16"], rel=1e-3)


@pytest.mark.parametrize(("title", "clock"), GEFORCE.items())
def test_quoted_peaks_are_what_multiprocessors_and_clock_give(title: str, clock: tuple[int, int]) -> None:
    card = next(card for card in CARDS if card.title == title)
    multiprocessors, megahertz = clock
    for precision, operations in {
        "fp32": 256, "tf32": 256, "fp16": 512, "bf16": 512, "fp16-fp16": 1024, "int8": 2048
    }.items():  # fmt: skip
        expected = multiprocessors * operations * megahertz / 1e6
        # NVIDIA writes 284 for 284.7.
        assert card.peak_tflops(precision) == pytest.approx(expected, rel=5e-3), precision


def test_hopper_adds_up_in_fp32_at_full_rate() -> None:
    hopper = [card for card in CARDS if card.title not in GEFORCE]
    assert [card.title for card in hopper] == ["H100 SXM", "H100 PCIe", "H200"]
    for card in hopper:
        assert card.peaks["fp16"] == card.peaks["fp16-fp16"]
        assert card.peaks["int8"] == pytest.approx(2 * card.peaks["fp16"], rel=1e-3)
        assert card.peaks["tf32"] == pytest.approx(card.peaks["fp16"] / 2, rel=1e-3)


def test_the_rtx_3060_does_fp16_at_twice_fp32_and_at_half_if_it_adds_up_in_fp32() -> None:
    peaks = {precision: round(peak, 1) for precision, peak in rtx3060().peaks.items()}
    assert peaks == {"fp32": 12.7, "tf32": 12.7, "fp16": 25.5, "bf16": 25.5, "fp16-fp16": 51.0, "int8": 101.9}
    assert rtx3060().bandwidth_gbps == 360
    assert rtx3060().quoted == frozenset()


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("NVIDIA GeForce RTX 3060", "GeForce RTX 3060"),
        ("GeForce RTX 3090", "GeForce RTX 3090"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
    ],
)
def test_cards_are_found_by_the_name_that_the_driver_gives_them(name: str, title: str) -> None:
    card = card_named(name)
    assert card is not None
    assert card.title == title


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3060 Ti",
        "NVIDIA GeForce RTX 3060 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100 NVL",
        "AMD EPYC",
        "",
    ],
)
def test_other_cards_are_not_taken_for_one_in_the_table(name: str) -> None:
    assert card_named(name) is None


def test_memory_tells_cards_of_one_name_apart() -> None:
    name = "NVIDIA GeForce RTX 3060"
    assert card_named(name, 12_630_000_000) == rtx3060()
    assert card_named(name, 8 << 30) is None
    assert card_named("NVIDIA GeForce RTX 3080", 12 << 30) is None
    # An H200 tells 139.8 GiB of its 141.
    assert card_named("NVIDIA H200", 150_111_000_000) is not None


def test_a_format_without_a_peak_is_refused_by_name() -> None:
    with pytest.raises(RefusedInput, match=r"'fp64'.*fp16-fp16"):
        rtx3060().peak_tflops("fp64")


# What a row achieved


def test_a_multiply_add_is_two_operations_and_the_median_counts() -> None:
    found = roofline(a_row(4.0, 2.0, 100.0), WORK, CARD)
    # 10^10 operations in 4 s; the card does 10^10 in 1 s. 2 GB in 4 s of 4 GB a second.
    assert found == {
        "name": "ours",
        "achieved_tflops": pytest.approx(0.0025),
        "achieved_gbps": pytest.approx(0.5),
        "share_of_peak": pytest.approx(0.25),
        "bound": "compute",
    }


def test_the_network_as_trained_has_its_own_operations_and_no_bytes() -> None:
    work = WORK | {"multiply_adds_as_trained": 10_000_000_000}
    found = roofline(a_row(4.0, network="as-trained"), work, CARD)
    assert found["achieved_tflops"] == pytest.approx(0.005)
    assert found["achieved_gbps"] is None and found["bound"] is None and found["share_of_peak"] == pytest.approx(0.5)


def test_floors_name_what_they_are_of() -> None:
    found = floors(FLOOR_WORK | {"weight_bytes": 2_400_000_000}, CARD, ("fp32", "fp16-fp16"))
    # 10^10 operations at 10^10 a second; 2.4 GB and 4 MB at 4 GB a second, half of the weights in FP16.
    assert [(one["bound"], pytest.approx(one["seconds"])) for one in found] == [("compute", 1.0), ("memory", 0.301)]
    assert {one["card"] for one in found} == {"plain numbers"}


def test_a_bench_knows_its_card_and_the_floors_are_those_of_an_rtx_3060() -> None:
    work = FLOOR_WORK | {"multiply_adds_as_trained": 1}
    gpu = Device(kind="cuda", name="NVIDIA GeForce RTX 4090", cores=2, memory_bytes=24 << 30)
    for device, known in ((gpu, True), (replace(gpu, kind="cpu"), False)):
        bench = Bench(
            date="", command="", machine={}, device=device, checkpoint={}, shape=(8, 8, 8), threads=1, rounds=1,
            volumes=1, rows=[a_row(1.0)], skipped=[], work=work,
        )  # fmt: skip
        found = rooflines(bench)
        assert (found["roofline"][0]["share_of_peak"] is not None) == known
        assert [one["precision"] for one in found["floors"]] == ["fp32", "fp16", "fp16-fp16", "int8"]
        assert {one["card"] for one in found["floors"]} == {"GeForce RTX 3060"}
    assert rooflines(replace(bench, work={})) == {"roofline": [], "floors": []}


def test_the_share_is_of_the_peak_in_the_format_of_the_row() -> None:
    assert roofline(a_row(1.0, precision="fp16"), WORK, CARD)["share_of_peak"] == pytest.approx(0.5)
    assert roofline(a_row(1.0, precision="fp16-fp16"), WORK, CARD)["share_of_peak"] == pytest.approx(0.25)


def test_the_bound_is_what_takes_longer_at_the_peaks_whatever_the_row_took() -> None:
    # 0.5 s for 2 GB; 0.5 s of FP16 with FP32 sums, 0.25 s with FP16 sums.
    for seconds in (0.1, 10.0):
        assert roofline(a_row(seconds, precision="fp16"), WORK, CARD)["bound"] == "compute"
        assert roofline(a_row(seconds, precision="fp16-fp16"), WORK, CARD)["bound"] == "memory"


@pytest.mark.parametrize(("precision", "card"), [("fp32", None), ("mixed", CARD)])
def test_without_a_peak_there_is_no_share_and_no_bound(precision: str, card: Card | None) -> None:
    found = roofline(a_row(1.0, precision=precision), WORK, card)
    assert found["achieved_tflops"] == pytest.approx(0.01)
    assert found["share_of_peak"] is None
    assert found["bound"] is None


def test_work_without_counts_is_refused() -> None:
    with pytest.raises(RefusedInput, match="no multiply_adds; it has nothing"):
        roofline(a_row(1.0), {}, CARD)


# The floor


def test_the_floor_is_arithmetic_where_there_is_much_of_it() -> None:
    assert floor_seconds(FLOOR_WORK, CARD, "fp32") == pytest.approx(1.0)
    assert floor_seconds(FLOOR_WORK, CARD, "fp16") == pytest.approx(0.5)
    assert floor_seconds(FLOOR_WORK, CARD, "fp16-fp16") == pytest.approx(0.25)


def test_the_floor_is_memory_where_there_is_little_arithmetic() -> None:
    little = FLOOR_WORK | {"multiply_adds": 1000}
    # 44 MB at 4 GB a second; weights of half the size, then of a quarter, with an input and output as before.
    assert floor_seconds(little, CARD, "fp32") == pytest.approx(0.011)
    assert floor_seconds(little, CARD, "fp16") == pytest.approx(0.006)
    assert floor_seconds(little, CARD, "int8") == pytest.approx(0.0035)
    # The same weights, counted in an FP16 graph.
    assert floor_seconds(little | {"weight_bytes": 20_000_000}, CARD, "fp32", counted_in="fp16") == pytest.approx(0.011)


def test_tensors_between_nodes_are_no_part_of_the_floor() -> None:
    assert floor_seconds(FLOOR_WORK | {"moved_bytes": 10**15}, CARD, "fp32") == pytest.approx(1.0)


def test_the_floor_of_an_rtx_3060() -> None:
    # 10^12 multiply-adds: 2 x 10^12 operations at 28 x 512 x 1777 MHz = 25.475 x 10^12 a second.
    work = FLOOR_WORK | {"multiply_adds": 10**12}
    assert floor_seconds(work, rtx3060(), "fp16") == pytest.approx(0.07851, rel=1e-3)


def test_the_floor_refuses_what_it_cannot_know() -> None:
    with pytest.raises(RefusedInput, match="no input_bytes; it has moved_bytes, multiply_adds, weight_bytes"):
        floor_seconds(WORK, CARD, "fp32")
    with pytest.raises(RefusedInput, match="'mixed'"):
        floor_seconds(FLOOR_WORK, CARD, "mixed")
    with pytest.raises(RefusedInput, match="'fp8'"):
        floor_seconds(FLOOR_WORK, CARD, "fp32", counted_in="fp8")


def test_a_row_at_the_floor_has_all_of_the_peak() -> None:
    row = replace(a_row(1.0), seconds=(floor_seconds(FLOOR_WORK, CARD, "fp32"),))
    assert roofline(row, WORK, CARD)["share_of_peak"] == pytest.approx(1.0)
