"""Peaks: the formula against the makers' own figures, and real names found, refused or unknown."""

from __future__ import annotations

import pytest

from hwbench.analysis import peaks
from hwbench.analysis.peaks import Peak, find, table

GIB = 2**30
ROWS = list(table().values())


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", ROWS, ids=lambda peak: peak.name)
def test_the_formula_gives_the_datasheet_or_the_row_says_why_not(peak: Peak) -> None:
    both = {
        precision: (formula, stated)
        for precision, stated in peak.datasheet.items()
        if (formula := peak.formula(precision)) is not None
    }
    for precision, (formula, stated) in both.items():
        assert formula == pytest.approx(stated, rel=0.02), precision
    if not both:
        assert "no formula" in peak.note or "no datasheet" in peak.note


@pytest.mark.parametrize("peak", ROWS, ids=lambda peak: peak.name)
def test_every_row_has_sources_and_figures_in_their_units(peak: Peak) -> None:
    assert peak.sources
    assert all(source.strip() for source in peak.sources)
    assert peak.clock_hertz is None or 0.5e9 < peak.clock_hertz < 3.5e9
    assert peak.bytes_per_second is None or 1e11 < peak.bytes_per_second < 1e13
    assert peak.watts is None or 40 <= peak.watts <= 1400
    assert peak.l2_bytes is None or 1e6 < peak.l2_bytes < 2e8
    for stated in peak.datasheet.values():
        assert 1e11 < stated < 1e16


@pytest.mark.parametrize(
    ("name", "multiprocessors", "memory", "with_float32", "with_float16"),
    [
        ("NVIDIA GeForce RTX 3090", 82, 24, 71.2, 142.3),
        ("NVIDIA GeForce RTX 4090", 128, 24, 165.2, 330.3),
        ("NVIDIA GeForce RTX 5090", 170, 32, 209.5, 419.0),
        ("NVIDIA RTX A6000", 84, 48, 154.8, 154.8),
        ("NVIDIA A100-SXM4-80GB", 108, 80, 311.9, 311.9),
    ],
)
def test_consumer_cards_accumulate_float32_at_half_the_rate(
    name: str, multiprocessors: int, memory: int, with_float32: float, with_float16: float
) -> None:
    peak = find(name, multiprocessors, memory * 1e9)
    assert isinstance(peak, Peak)
    plain, other = (peak.formula(f"float16{how}") for how in ("", "_accumulate_float16"))
    assert plain == pytest.approx(with_float32 * 1e12, rel=5e-3)
    assert other == pytest.approx(with_float16 * 1e12, rel=5e-3)


def test_the_observed_clock_takes_the_place_of_the_makers() -> None:
    peak = table()["h100 80gb hbm3"]
    assert peak.formula("float16") == pytest.approx(132 * 1830e6 * 4096)
    assert peak.formula("float32") == pytest.approx(132 * 1980e6 * 256)
    assert peak.formula("float16", 1e9) == pytest.approx(132 * 1e9 * 4096)
    assert peak.formula("int3") is None


# --- real names --------------------------------------------------------------------------------

# name, multiprocessors, bytes as the driver tells them, the row (None: refused)
FOUND = [
    ("NVIDIA A100-SXM4-80GB", 108, 85_049_475_072, "NVIDIA A100-SXM4-80GB"),
    ("A100-SXM4-40GB", 108, 42_505_273_344, "NVIDIA A100-SXM4-40GB"),
    ("NVIDIA A100-SXM4-40GB", 108, 42_505_273_344, "NVIDIA A100-SXM4-40GB"),
    ("NVIDIA A100-PCIE-40GB", 108, 42_505_273_344, "NVIDIA A100-PCIE-40GB"),
    ("NVIDIA A100 80GB PCIe", 108, 84_987_740_160, "NVIDIA A100 80GB PCIe"),
    ("NVIDIA A30", 56, 25_226_117_120, "NVIDIA A30"),
    ("NVIDIA A10", 72, 23_609_475_072, "NVIDIA A10"),
    ("NVIDIA A10G", 80, 23_835_639_808, "NVIDIA A10G"),
    ("NVIDIA A40", 84, 45_416 * 2**20, "NVIDIA A40"),
    ("NVIDIA L4", 58, 23_669_440_512, "NVIDIA L4"),
    ("NVIDIA L40", 142, 47_810_936_832, "NVIDIA L40"),
    ("NVIDIA L40S", 142, 45_589 * 2**20, "NVIDIA L40S"),
    ("NVIDIA H100 80GB HBM3", 132, 85_028_896_768, "NVIDIA H100 80GB HBM3"),
    ("NVIDIA H100 PCIe", 114, 85_028_896_768, "NVIDIA H100 PCIe"),
    ("NVIDIA H100 NVL", 132, 100_500_963_328, "NVIDIA H100 NVL"),
    ("NVIDIA H200", 132, 150_754_820_096, "NVIDIA H200"),
    ("NVIDIA H200 NVL", 132, 150_754_820_096, "NVIDIA H200 NVL"),
    ("NVIDIA GH200 480GB", 132, 102_005_473_280, "NVIDIA GH200 480GB"),
    ("NVIDIA GH200 144G HBM3e", 132, 154_000_000_000, "NVIDIA GH200 144G HBM3e"),
    ("NVIDIA GH200 144GB HBM3e", 132, 154_000_000_000, "NVIDIA GH200 144GB HBM3e"),
    ("NVIDIA B200", 148, 191_500_000_000, "NVIDIA B200"),
    ("Tesla V100-SXM2-16GB", 80, 16_945_512_448, "Tesla V100-SXM2-16GB"),
    ("Tesla V100-SXM2-32GB", 80, 34_089_730_048, "Tesla V100-SXM2-32GB"),
    ("Tesla V100-PCIE-16GB", 80, 16_945_512_448, "Tesla V100-PCIE-16GB"),
    ("Tesla V100-PCIE-32GB", 80, 34_089_730_048, "Tesla V100-PCIE-32GB"),
    ("Tesla T4", 40, 15_843_721_216, "Tesla T4"),
    ("GeForce RTX 2080 Ti", 68, 11_554_717_696, "NVIDIA GeForce RTX 2080 Ti"),
    ("NVIDIA GeForce RTX 2080 Ti", 68, 11_554_717_696, "NVIDIA GeForce RTX 2080 Ti"),
    ("NVIDIA GeForce RTX 3060", 28, 12_622_168_064, "NVIDIA GeForce RTX 3060"),
    ("NVIDIA GeForce RTX 3060 Ti", 38, 8_361_017_344, "NVIDIA GeForce RTX 3060 Ti"),
    ("GeForce RTX 3070", 46, 8_369_799_168, "NVIDIA GeForce RTX 3070"),
    ("NVIDIA GeForce RTX 3070 Ti", 48, 8_361_017_344, "NVIDIA GeForce RTX 3070 Ti"),
    ("GeForce RTX 3080", 68, 10_503_192_576, "NVIDIA GeForce RTX 3080"),
    ("NVIDIA GeForce RTX 3080 Ti", 80, 12_621_381_632, "NVIDIA GeForce RTX 3080 Ti"),
    ("GeForce RTX 3090", 82, 25_438_126_080, "NVIDIA GeForce RTX 3090"),
    ("NVIDIA GeForce RTX 3090", 82, 25_438_126_080, "NVIDIA GeForce RTX 3090"),
    ("NVIDIA GeForce RTX 3090 Ti", 84, 25_386_352_640, "NVIDIA GeForce RTX 3090 Ti"),
    ("NVIDIA GeForce RTX 4060", 24, 8_188 * 2**20, "NVIDIA GeForce RTX 4060"),
    ("NVIDIA GeForce RTX 4060 Ti", 34, 8_188 * 2**20, "NVIDIA GeForce RTX 4060 Ti"),
    ("NVIDIA GeForce RTX 4060 Ti", 34, 16_380 * 2**20, "NVIDIA GeForce RTX 4060 Ti"),
    ("NVIDIA GeForce RTX 4070", 46, 12_282 * 2**20, "NVIDIA GeForce RTX 4070"),
    ("NVIDIA GeForce RTX 4070 SUPER", 56, 12_282 * 2**20, "NVIDIA GeForce RTX 4070 SUPER"),
    ("NVIDIA GeForce RTX 4070 Ti", 60, 12_282 * 2**20, "NVIDIA GeForce RTX 4070 Ti"),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", 66, 16_376 * 2**20, "NVIDIA GeForce RTX 4070 Ti SUPER"),
    ("NVIDIA GeForce RTX 4080", 76, 16_376 * 2**20, "NVIDIA GeForce RTX 4080"),
    ("NVIDIA GeForce RTX 4080 SUPER", 80, 16_376 * 2**20, "NVIDIA GeForce RTX 4080 SUPER"),
    ("NVIDIA GeForce RTX 4090", 128, 25_393_692_672, "NVIDIA GeForce RTX 4090"),
    ("NVIDIA GeForce RTX 5060 Ti", 36, 16_311 * 2**20, "NVIDIA GeForce RTX 5060 Ti"),
    ("NVIDIA GeForce RTX 5070", 48, 12_227 * 2**20, "NVIDIA GeForce RTX 5070"),
    ("NVIDIA GeForce RTX 5070 Ti", 70, 16_303 * 2**20, "NVIDIA GeForce RTX 5070 Ti"),
    ("NVIDIA GeForce RTX 5080", 84, 16_303 * 2**20, "NVIDIA GeForce RTX 5080"),
    ("NVIDIA GeForce RTX 5090", 170, 32_607 * 2**20, "NVIDIA GeForce RTX 5090"),
    ("NVIDIA RTX A4000", 48, 16_376 * 2**20, "NVIDIA RTX A4000"),
    ("RTX A5000", 64, 24_256 * 2**20, "NVIDIA RTX A5000"),
    ("NVIDIA RTX A6000", 84, 48_685 * 2**20, "NVIDIA RTX A6000"),
    ("NVIDIA RTX 6000 Ada Generation", 142, 49_140 * 2**20, "NVIDIA RTX 6000 Ada Generation"),
    ("Orin", 16, 65_900_000_000, "Orin"),
]
PRO = "NVIDIA RTX PRO 6000 Blackwell"
FOUND += [
    (f"{PRO} {edition}", 188, 97_887 * 2**20, f"{PRO} {edition}")
    for edition in ("Workstation Edition", "Server Edition", "Max-Q Workstation Edition")
]
REFUSED = [
    ("NVIDIA A100 80GB PCIe MIG 1g.10gb", 14, 10_200_547_328, "slice"),
    ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 42, 20_937_965_568, "slice"),
    ("NVIDIA H100 80GB HBM3 MIG 7g.80gb", 132, 85_028_896_768, "slice"),
    ("GRID A100-10C", 108, 10_000_000_000, "slice"),
    ("NVIDIA A10-24Q", 72, 24_000_000_000, "slice"),
    ("NVIDIA GeForce RTX 3080", 70, 12_622_168_064, "unknown variant"),
    ("NVIDIA GeForce RTX 3080 Laptop GPU", 48, 16_000_000_000, "unknown variant"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 76, 16_000_000_000, "unknown variant"),
    ("NVIDIA GeForce RTX 4090 D", 114, 25_250_000_000, "unknown variant"),
    ("NVIDIA GeForce RTX 4090", 128, 48_500_000_000, "unknown variant"),
    ("NVIDIA GeForce RTX 3060", 28, 8_589_934_592, "unknown variant"),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", 60, 16_376 * 2**20, "unknown variant"),
    ("NVIDIA GeForce RTX 5090 D", 170, 25_000_000_000, "unknown variant"),
    ("Orin", 14, 32_000_000_000, "unknown variant"),
    ("NVIDIA PG506-230", 124, 68_000_000_000, "not in peaks.toml"),
    ("NVIDIA L40G", 142, 25_000_000_000, "not in peaks.toml"),
    ("NVIDIA H100", 132, 85_028_896_768, "not in peaks.toml"),
    ("NVIDIA H20", 78, 102_000_000_000, "not in peaks.toml"),
    ("Tesla V100S-PCIE-32GB", 80, 34_089_730_048, "not in peaks.toml"),
    ("Tesla P100-PCIE-16GB", 56, 17_066_885_120, "not in peaks.toml"),
    ("Quadro RTX 8000", 72, 51_049_267_200, "not in peaks.toml"),
    ("NVIDIA TITAN RTX", 72, 25_397_362_688, "not in peaks.toml"),
    ("GeForce RTX 2070", 36, 8_370_061_312, "not in peaks.toml"),
    ("NVIDIA GeForce GTX 1080 Ti", 28, 11_721_179_136, "not in peaks.toml"),
    ("NVIDIA Graphics Device", 132, 85_028_896_768, "not in peaks.toml"),
    ("AMD Instinct MI300X", 304, 206_141_652_992, "not in peaks.toml"),
    ("AMD Radeon Graphics", 304, 206_141_652_992, "not in peaks.toml"),
    ("", 1, 1, "not in peaks.toml"),
]


def test_there_are_enough_names() -> None:
    assert len({name for name, *_ in FOUND + REFUSED}) >= 60


@pytest.mark.parametrize(("name", "multiprocessors", "memory", "row"), FOUND)
def test_a_real_name_finds_its_own_row(
    name: str, multiprocessors: int, memory: int, row: str
) -> None:
    peak = find(name, multiprocessors, memory)
    assert isinstance(peak, Peak), peak
    assert peak.name == row
    assert peak.exact


@pytest.mark.parametrize(("name", "multiprocessors", "memory", "why"), REFUSED)
def test_what_is_not_known_is_said_and_never_assumed(
    name: str, multiprocessors: int, memory: int, why: str
) -> None:
    peak = find(name, multiprocessors, memory)
    assert isinstance(peak, str)
    assert why in peak


def test_a_longer_name_is_found_by_its_beginning_and_says_so() -> None:
    peak = find("NVIDIA GeForce RTX 4070 Ti SUPER OC", 66, 16_376 * 2**20)
    assert isinstance(peak, Peak)
    assert (peak.name, peak.exact) == ("NVIDIA GeForce RTX 4070 Ti SUPER", False)


def test_facts_of_a_run_are_enough_and_a_slice_is_told_by_nvml() -> None:
    facts = {"name": "NVIDIA A100-SXM4-80GB", "multiprocessors": 108, "memory_bytes": 85 * 10**9}
    peak = peaks.of_device(facts)
    assert isinstance(peak, Peak)
    assert "slice" in str(peaks.of_device({**facts, "mig": True}))
    assert "not known" in str(peaks.of_device({**facts, "memory_bytes": "hidden"}))
    for other in (None, {}, {"name": "AMD EPYC", "cores": 2}):
        assert peaks.of_device(other) == "Only NVIDIA devices have peaks in peaks.toml."
