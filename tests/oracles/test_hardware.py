"""The device catalogue against vendors' data sheets, and how it is asked."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmcalc
from llmcalc import DeviceSpec, GiB, LlmcalcError, MiB, hardware
from llmcalc.errors import InvalidValueError, UnknownNameError

TABLE = json.loads(
    (Path(llmcalc.__file__).parent / "data" / "devices.json").read_text(encoding="utf-8")
)
DEVICES = [hardware.get(name) for name in hardware.names()]
EVERY_DEVICE = pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)

# Read from the vendors' data sheets, independently of the catalogue: dense TFLOP/s by format,
# GB/s of memory, watts. A sheet that prints "with sparsity" is halved here, and so are links
# that it gives for both directions together.
DATA_SHEETS: dict[str, tuple[dict[str, float], float, int | None, float | None]] = {
    # NVIDIA V100 data sheet: SXM2 "125 teraFLOPS", 900 GB/s, NVLink 300 GB/s, 300 W.
    "V100-SXM2-32GB": ({"fp16": 125, "fp32": 15.7}, 900, 300, 150),
    # NVIDIA T4 data sheet: 65 TFLOPS mixed, 130 TOPS int8, 8.1 single; 320+ GB/s; 70 W.
    "T4": ({"fp16": 65, "int8": 130, "fp32": 8.1}, 320, 70, None),
    # NVIDIA A10 data sheet: "125 TF | 250 TF*" in bf16 and fp16, int8 "250 | 500*"; 600 GB/s.
    "A10": ({"bf16": 125, "fp16": 125, "int8": 250, "tf32": 62.5}, 600, 150, None),
    # NVIDIA A30 data sheet: bf16 "165 | 330*", int8 "330 | 661*"; 933 GB/s; NVLink 200 GB/s.
    "A30": ({"bf16": 165, "int8": 330, "tf32": 82}, 933, 165, 100),
    # NVIDIA A100 data sheet: bf16 "312 | 624*", tf32 "156 | 312*", int8 "624 | 1248*"; 40 GB
    # 1555 GB/s, 80 GB PCIe 1935 GB/s and 300 W, 80 GB SXM 2039 GB/s and 400 W; NVLink 600 GB/s.
    "A100-SXM-40GB": ({"bf16": 312, "tf32": 156, "int8": 624, "fp32": 19.5}, 1555, 400, 300),
    "A100-PCIe-80GB": ({"bf16": 312, "tf32": 156, "int8": 624, "fp32": 19.5}, 1935, 300, None),
    "A100-SXM-80GB": ({"bf16": 312, "tf32": 156, "int8": 624, "fp32": 19.5}, 2039, 400, 300),
    # NVIDIA L4 data sheet, with sparsity: 242 in bf16, 485 in fp8 and int8; 300 GB/s; 72 W.
    "L4": ({"bf16": 242 / 2, "fp8": 485 / 2, "int8": 485 / 2, "fp32": 30.3}, 300, 72, None),
    # NVIDIA L40S data sheet: bf16 "362.05 | 733*", fp8 "733 | 1466*"; 864 GB/s; 350 W.
    "L40S": ({"bf16": 362.05, "fp8": 733, "int8": 733, "fp32": 91.6}, 864, 350, None),
    # NVIDIA L40 data sheet: bf16 "181.05 | 362.1*", fp8 "362 | 724*"; 864 GB/s; 300 W.
    "L40": ({"bf16": 181.05, "fp8": 362, "int8": 362, "fp32": 90.5}, 864, 300, None),
    # NVIDIA A40 data sheet: bf16 "149.7 | 299.4*", int8 "299.3 | 598.6*"; 696 GB/s; 300 W; NVLink
    # 112.5 GB/s.
    "A40": ({"bf16": 149.7, "int8": 299.3, "fp32": 37.4}, 696, 300, 112.5 / 2),
    # The H20 as sellers list it: 148 in bf16, 296 in int8, 44 in fp32; 4.0 TB/s; 400 W.
    "H20-96GB": ({"bf16": 148, "int8": 296, "fp32": 44}, 4000, 400, 450),
    # NVIDIA RTX PRO 6000 Blackwell Server Edition data sheet: 1597 GB/s, up to 600 W.
    "RTX-PRO-6000-Blackwell-Server": ({}, 1597, 600, None),
    # NVIDIA GH200, the one with 144 GB of HBM3e: 4.9 TB/s.
    "GH200-144GB": ({}, 4900, None, None),
    # NVIDIA Ada architecture white paper, appendix A: fp32 accumulation 165.2 in fp16 and 330.3
    # in fp8, fp16 accumulation twice that, int8 660.6; 1008 GB/s; 450 W.
    "RTX-4090": (
        {
            "bf16": 165.2,
            "fp16": 165.2,
            "fp16_fp16acc": 330.3,
            "fp8": 330.3,
            "fp8_fp16acc": 660.6,
            "int8": 660.6,
            "fp32": 82.6,
        },
        1008,
        450,
        None,
    ),
    # NVIDIA Blackwell RTX white paper: fp32 accumulation 209.5 in bf16 and 419 in fp8, fp4 1676
    # (3352 with sparsity); 1792 GB/s; 575 W.
    "RTX-5090": ({"bf16": 209.5, "fp8": 419, "fp4": 1676, "fp32": 104.8}, 1792, 575, None),
    # NVIDIA H100 data sheet, with sparsity: SXM bf16 1979, fp8 3958, tf32 989; 3.35 TB/s; 700 W;
    # NVLink 900 GB/s. PCIe bf16 1513, fp8 3026, tf32 756; 2 TB/s; 350 W; NVLink 600 GB/s.
    "H100-SXM-80GB": (
        {"bf16": 1979 / 2, "fp16": 1979 / 2, "fp8": 3958 / 2, "tf32": 989 / 2, "fp32": 67},
        3350,
        700,
        450,
    ),
    "H100-PCIe-80GB": ({"bf16": 1513 / 2, "fp8": 3026 / 2, "tf32": 756 / 2}, 2000, 350, 300),
    # NVIDIA H200 data sheet: compute of the H100 SXM; 4.8 TB/s; 700 W; NVLink 900 GB/s.
    "H200-SXM-141GB": ({"bf16": 1979 / 2, "fp8": 3958 / 2, "int8": 3958 / 2}, 4800, 700, 450),
    # NVIDIA DGX B200 data sheet, 8 GPUs: fp8 72 PFLOPS and fp4 144 PFLOPS with sparsity; 1000 W
    # and NVLink 1.8 TB/s a GPU.
    "B200-SXM-180GB": ({"bf16": 36e3 / 16, "fp8": 72e3 / 16, "fp4": 144e3 / 16}, 7700, 1000, 900),
    # AMD MI300X data sheet: fp16 and bf16 1307.4, fp8 and int8 2614.9 (sparsity apart), fp32
    # 163.4; 5.3 TB/s; 750 W; seven links of 128 GB/s, both directions together.
    "MI300X": (
        {"bf16": 1307.4, "fp16": 1307.4, "fp8": 2614.9, "int8": 2614.9, "fp32": 163.4},
        5300,
        750,
        7 * 128 / 2,
    ),
    # AMD MI210 and MI250X data sheets: 181.0 and 383.0 in fp16, bf16 and int8; 1.6 and 3.2 TB/s.
    "MI210": ({"fp16": 181, "bf16": 181, "int8": 181, "fp32": 22.6}, 1638.4, 300, None),
    "MI250X": ({"fp16": 383, "bf16": 383, "int8": 383, "fp32": 47.9}, 3276.8, 560, 7 * 100 / 2),
    # Google Cloud documentation, system architecture of each TPU: peak per chip, HBM bandwidth,
    # inter-chip bandwidth of both directions together.
    "TPU-v5e": ({"bf16": 197, "int8": 393}, 819, None, 400 / 2),
    "TPU-v5p": ({"bf16": 459, "int8": 918}, 2765, None, 1200 / 2),
    "TPU-v6e": ({"bf16": 918, "int8": 1836}, 1638, None, 800 / 2),
    # AWS Neuron documentation, Trainium2: 667 dense bf16, 1299 dense fp8; 2.9 TB/s.
    "Trainium2": ({"bf16": 667, "fp8": 1299}, 2900, None, 1280 / 2),
}

# Totals that nvidia-smi prints, in MiB.
SHOWN_BY_THE_DRIVER = {
    "H100-SXM-80GB": 81559,
    "H100-PCIe-80GB": 81559,
    "A100-SXM-80GB": 81920,
    "A100-SXM-40GB": 40960,
    "H200-SXM-141GB": 143771,
    "B200-SXM-180GB": 183359,
    "GB200-186GB": 189471,
    "A10": 23028,
    "L4": 23034,
    "L40S": 46068,
    "T4": 15360,
    "RTX-4090": 24564,
    "RTX-5090": 32607,
}


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_figures_are_those_of_the_data_sheets(name: str) -> None:
    peaks, bandwidth, watts, link = DATA_SHEETS[name]
    device = hardware.get(name)
    for format, tera in peaks.items():
        assert device.peak(format) == pytest.approx(tera * 1e12, rel=0.003), format
    assert device.bandwidth_bytes_per_second == pytest.approx(bandwidth * 1e9, rel=0.001)
    if watts is not None:
        assert device.tdp_watts == watts
    if link is not None:
        assert device.link_bytes_per_second_per_direction == link * 1e9


@pytest.mark.parametrize("name", SHOWN_BY_THE_DRIVER)
def test_memory_is_what_the_driver_shows(name: str) -> None:
    assert hardware.get(name).memory_bytes == SHOWN_BY_THE_DRIVER[name] * MiB


def test_h100_figures_that_engines_are_checked_with() -> None:
    device = hardware.get("H100-SXM-80GB")
    assert device.peak("bf16") == 989 * 10**12
    assert device.bandwidth_bytes_per_second == 3_350 * 10**9
    assert device.nominal_memory_bytes == 80 * 10**9
    assert device.runtime_memory_bytes is not None
    assert f"{device.runtime_memory_bytes / GiB:.2f}" == "79.19"
    assert device.ridge_point("bf16") == pytest.approx(989 / 3.35)


def test_the_catalogue_holds_accelerators_and_processors_of_many_vendors() -> None:
    assert len(DEVICES) == len(set(hardware.names())) >= 60
    vendors = {device.vendor for device in DEVICES}
    assert vendors == {"NVIDIA", "AMD", "Intel", "Google", "AWS", "Apple"}
    assert {"H100-SXM-80GB", "A100-SXM-80GB", "RTX-4090"} <= set(hardware.names())


@EVERY_DEVICE
def test_every_figure_has_a_source_or_is_marked_as_having_none(device: DeviceSpec) -> None:
    assert set(device.sources) == set(device.figures)
    marked = {name for name, text in device.sources.items() if text.startswith("unsourced")}
    assert set(device.unsourced) == marked
    assert device.nominal_memory_bytes is not None
    assert (device.link is None) == (device.link_bytes_per_second_per_direction is None)
    assert (device.host_link is None) == (device.host_link_bytes_per_second_per_direction is None)


@EVERY_DEVICE
def test_no_sparse_peak_stands_among_the_dense_ones(device: DeviceSpec) -> None:
    # A rate doubles at most with each halving of the width; a sparse figure beside a dense one
    # would make it four times. Consumer cards accumulate integers at full rate, floats at half.
    peaks = device.peak_flops
    for narrow, wide, most in (
        ("fp16_fp16acc", "fp16", 2),
        ("fp8", "bf16", 2),
        ("fp8_fp16acc", "fp8", 2),
        ("int8", "fp16", 4 if device.name.startswith("RTX-") else 2),
        ("bf16", "tf32", 4),
        ("fp4", "fp8", 4),
    ):
        if narrow in peaks and wide in peaks:
            assert peaks[narrow] <= 1.03 * most * peaks[wide], (narrow, wide)
    for format, rate in device.measured_flops.items():
        assert rate < device.peak(format)


@EVERY_DEVICE
def test_memory_figures_are_in_the_order_that_hardware_imposes(device: DeviceSpec) -> None:
    assert device.nominal_memory_bytes is not None
    # Error correction takes its share of the A10G's memory; every other driver shows more than
    # the label read in powers of 1000, and none shows more than in powers of 1024.
    if device.name != "A10G":
        assert device.memory_bytes >= device.nominal_memory_bytes
    assert device.memory_bytes <= device.nominal_memory_bytes * GiB // 10**9
    # The two figures of the DGX Spark, which shares its memory with the host, are of two machines.
    if device.runtime_memory_bytes is not None and device.name != "DGX-Spark":
        assert 0.96 * device.memory_bytes < device.runtime_memory_bytes <= device.memory_bytes


@given(st.data())
def test_spelling_does_not_matter_and_gives_the_same_object(data: st.DataObject) -> None:
    device = data.draw(st.sampled_from(DEVICES))
    row = next(row for row in TABLE["devices"] if row["name"] == device.name)
    name = data.draw(st.sampled_from([device.name, *row.get("aliases", ())]))
    separators = st.sampled_from(["", " ", "-", "_", "  ", "- "])
    letters = [
        data.draw(separators) if letter == "-" else data.draw(st.sampled_from([letter, swapped]))
        for letter, swapped in zip(name, name.swapcase(), strict=True)
    ]
    brands = [""] if device.vendor == "Apple" else ["", f"{device.vendor} "]
    brand = data.draw(st.sampled_from(brands))
    assert hardware.get(brand + "".join(letters)) is device


def test_no_two_devices_share_a_name_or_an_alias() -> None:
    spellings = [
        hardware._key(name)
        for row in TABLE["devices"]
        for name in (row["name"], *row.get("aliases", ()))
    ]
    assert len(spellings) == len(set(spellings))


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("NVIDIA H200", "H200-SXM-141GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_what_torch_calls_a_device_is_understood(reported: str, name: str) -> None:
    assert hardware.get(reported).name == name


@pytest.mark.parametrize(
    ("given_name", "suggested"),
    [
        ("B200 SXM (HGX/DGX)", {"B200-SXM-180GB"}),
        ("Apple M1 Max (32-core GPU)", {"Apple-M1-Max-64GB"}),
        ("H100 (any)", {"H100-SXM-80GB", "H100-PCIe-80GB", "H100-NVL-94GB"}),
        ("H100", {"H100-SXM-80GB", "H100-PCIe-80GB", "H100-NVL-94GB"}),
        ("a100 sxm", {"A100-SXM-40GB", "A100-SXM-80GB"}),
        ("RTX 4060", {"RTX-4090"}),
        ("H100-SMX-80GB", {"H100-SXM-80GB"}),
        ("M3 Ultra", {"Apple-M3-Ultra-512GB"}),
    ],
)
def test_an_unknown_or_ambiguous_name_is_an_error_with_suggestions(
    given_name: str, suggested: set[str]
) -> None:
    with pytest.raises(hardware.UnknownDeviceError, match="device = ") as caught:
        hardware.get(given_name)
    assert suggested <= set(caught.value.suggestions)
    assert all(name in str(caught.value) for name in caught.value.suggestions)
    assert isinstance(caught.value, UnknownNameError)
    assert caught.value.known == tuple(sorted(hardware.names()))


@given(st.text(max_size=300))
def test_no_text_gets_a_device_that_is_not_called_so(text: str) -> None:
    spellings = {hardware._key(name) for name in hardware.names()}
    if hardware._key(text) not in spellings:
        with pytest.raises(hardware.UnknownDeviceError) as caught:
            hardware.get(text)
        assert len(str(caught.value)) <= 200


def test_what_is_no_name_is_refused_and_a_device_is_returned_as_it_is() -> None:
    with pytest.raises(InvalidValueError, match="target = 4090: must be a device's name"):
        hardware.get(4090, "target")  # type: ignore[arg-type]
    with pytest.raises(hardware.UnknownDeviceError, match=r"in llmcalc\.hardware\.names\(\)$"):
        hardware.get("")
    device = minimal()
    assert hardware.get(device) is device


def minimal(**changes: Any) -> DeviceSpec:
    fields: dict[str, Any] = {
        "name": "mine",
        "memory_bytes": 48 * GiB,
        "bandwidth_bytes_per_second": 10**12,
        "peak_flops": {"bf16": 200 * 10**12},
    }
    return DeviceSpec(**(fields | changes))


def test_four_figures_make_a_device_whose_figures_count_as_unsourced() -> None:
    device = minimal()
    assert device.ridge_point("bf16") == 200.0
    assert set(device.unsourced) == set(device.figures)
    assert set(device.figures) == {
        "memory_bytes",
        "bandwidth_bytes_per_second",
        "peak_flops.bf16",
    }
    cited = attrs.evolve(device, sources={"memory_bytes": "its driver", "peak_flops.bf16": "mine"})
    assert cited.unsourced == ("bandwidth_bytes_per_second",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name = '': must be a string that is not empty"),
        ({"name": None}, "name = None: must be a string"),
        ({"memory_bytes": 0}, "memory_bytes = 0: must be an int of at least 1"),
        ({"memory_bytes": 80e9}, "memory_bytes = 80000000000.0: must be an int .*, not a float"),
        ({"memory_bytes": None}, "memory_bytes = None: must be an int"),
        ({"bandwidth_bytes_per_second": True}, "bandwidth_bytes_per_second = True"),
        ({"bandwidth_bytes_per_second": -1}, "bandwidth_bytes_per_second = -1"),
        ({"peak_flops": {"bf16": 989e12}}, r"peak_flops\['bf16'\] = 989.* 989 \* 10\*\*12"),
        ({"peak_flops": {"bf61": 1}}, "peak_flops format = 'bf61': .* did you mean 'bf16'"),
        ({"peak_flops": {16: 1}}, "peak_flops format = 16"),
        ({"peak_flops": 989 * 10**12}, "peak_flops = 989000000000000: must be a mapping"),
        ({"measured_flops": {"fp8": "fast"}}, r"measured_flops\['fp8'\] = 'fast'"),
        ({"tdp_watts": 0}, "tdp_watts = 0"),
        ({"vendor": " "}, "vendor = ' '"),
        ({"link": 3}, "link = 3"),
        ({"nominal_memory_bytes": 1.5}, "nominal_memory_bytes = 1.5"),
        ({"sources": {"tdp_watts": "x"}}, "sources = 'tdp_watts': is not known; known: bandwidth"),
        ({"sources": {"memory_bytes": ""}}, r"sources\['memory_bytes'\] = ''"),
        ({"sources": "here"}, "sources = 'here': must be a mapping"),
        ({"notes": "one"}, "notes = 'one': must be a tuple of strings"),
        ({"notes": (1,)}, "notes = 1: must be a string"),
    ],
)
def test_bad_figures_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmcalcError, match=message):
        minimal(**changes)


def test_a_format_without_a_peak_is_an_error_and_no_other_format_stands_in() -> None:
    with pytest.raises(InvalidValueError, match=r"T4 has no peak for this format; known .* fp16"):
        hardware.get("T4").ridge_point("bf16")
    with pytest.raises(InvalidValueError, match="known peaks: none"):
        hardware.get("RTX-5070-Ti").peak("bf16")
    with pytest.raises(UnknownNameError, match="did you mean 'bf16'"):
        hardware.get("L4").ridge_point("bf61")


def test_devices_are_values_that_cannot_be_changed() -> None:
    device = hardware.get("A100-SXM-80GB")
    same = pickle.loads(pickle.dumps(device))  # noqa: S301  # our own bytes
    assert same == device == copy.deepcopy(device)
    assert hash(same) == hash(device)
    assert device != hardware.get("A100-SXM-40GB")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        device.memory_bytes = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        device.peak_flops["bf16"] = 1  # type: ignore[index]
    given_peaks = {"bf16": 1}
    mine = minimal(peak_flops=given_peaks)
    given_peaks["bf16"] = 2
    assert mine.peak("bf16") == 1


def test_importing_reads_no_table_and_answering_needs_no_numpy() -> None:
    code = """
import sys
from llmcalc import hardware
assert hardware._catalogue is None
assert hardware.get("L4").ridge_point("bf16") > 400
assert hardware._catalogue is not None
assert not {"numpy", "matplotlib", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
