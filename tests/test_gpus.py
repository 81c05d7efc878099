"""The table of GPUs, the roofline, and the planner's answers for every layer on each of them."""

import csv
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastconv
from fastconv.explain import DIRECTIONS
from fastconv.gpus import GPUS, conv_work, estimate, gpu_of
from fastconv.testing.layers import LAYERS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import computed  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def explained(layer, batch, dtype, gpu, direction="forward"):
    x, w, _ = layer.sizes(batch)
    window = layer.stride, layer.padding, layer.dilation, layer.groups
    options = dict(backend="cuda", dtype=dtype, gpu=gpu, direction=direction)
    return fastconv.explain(x, w, *window, **options)


def test_peaks_are_the_datasheets():
    """TFLOP/s; the 67 of float32 are promised at 1.98 GHz, H200's clock in the table, those of
    tensor cores at 1.83, H100's."""
    faster = 1.98 / 1.83
    h100, h200 = (989, 495, 67 / faster), (989 * faster, 495 * faster, 67)
    for gpu, *peaks in (("A100", 312, 156, 19.5), ("H100", *h100), ("H200", *h200)):
        for precision, peak in zip(("half", "tf32", "float32"), peaks, strict=True):
            assert GPUS[gpu].peak(precision) / 1e12 == pytest.approx(peak, rel=0.01)
    assert GPUS["H100"].peak("3xtf32") == pytest.approx(GPUS["H100"].peak("tf32") / 3)
    assert GPUS["RTX 4060 Laptop"].peak("half") == pytest.approx(
        165.2e12 / 128 / 2.52 * 24 * 2.37, rel=0.01
    )


def test_work():
    layer = next(layer for layer in LAYERS if layer.name == "resnet50 1x1/2 256->512 @56")
    operations, moved = conv_work(*layer.sizes(2), 2)
    assert operations == 2 * 2 * 28 * 28 * 512 * 256
    assert moved == 2 * (2 * 256 * 56 * 56 + 512 * 256 + 2 * 512 * 28 * 28)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gpu", GPUS)
def test_every_layer_has_a_plan(gpu, dtype, tf32, direction):
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        for layer in LAYERS:
            for batch in (1, 32, 256):
                answer = explained(layer, batch, dtype, gpu, direction)
                e = answer.estimate
                assert answer.algorithm and e.bound in ("compute", "memory") and e.floor > 0
                if answer.algorithm in ("conv1x1", "implicit_gemm"):
                    assert e.tile and e.waves > 0 and 0 < e.roofline <= 1, layer.name
                else:
                    assert e.roofline is None
                if answer.algorithm == "stem" and direction == "weight_grad":
                    assert e.tile.startswith("64x") and e.splits >= 1
                elif answer.algorithm == "stem":
                    assert e.tile.startswith("8x16x") and e.waves > 0
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_empty_batch_has_a_plan_too(direction):
    options = dict(backend="cuda", dtype=torch.half, direction=direction)
    found = fastconv.explain((0, 16, 9, 7), (24, 16, 3, 3), **options)
    assert found.algorithm == "implicit_gemm" and found.estimate is not None


def test_large_3x3_is_bound_by_compute_and_1x1_of_resnet_by_memory():
    named = {layer.name: layer for layer in LAYERS}
    large = explained(named["vgg16 3x3 256->256 @56"], 32, torch.float16, "H100").estimate
    assert large.bound == "compute" and large.roofline > 0.4
    x, w, y = named["vgg16 3x3 256->256 @56"].sizes(32)
    assert large.floor == pytest.approx(conv_work(x, w, y, 2)[0] / GPUS["H100"].peak("half"))
    for name in ("resnet50 1x1 64->256 @56", "resnet50 1x1 256->64 @56"):
        assert explained(named[name], 32, torch.float16, "H100").estimate.bound == "memory"


def test_the_longest_of_cycles_products_and_bytes():
    gpu = GPUS["A100"]

    def share(operations, moved, cycles, dtype=torch.float16, tf32=False):
        work = operations, moved
        return estimate("A100", gpu, work, dtype, tf32, "t", 1, 1.0, cycles).roofline

    peak = gpu.peak("half")
    assert share(peak, 1, 2 * gpu.clock) == pytest.approx(0.5)
    assert share(1, gpu.bandwidth, 4 * gpu.clock) == pytest.approx(0.25)
    assert share(peak, 1, 1) == pytest.approx(1)  # cycles below the peak are not believed
    assert share(1, gpu.bandwidth, 1) == pytest.approx(1)
    # A laptop's 3xTF32 is slower than its float32 outside tensor cores, which is then the roofline.
    laptop = GPUS["RTX 4060 Laptop"]
    e = estimate("a laptop", laptop, (10**12, 1), torch.float32, False, "t", 1, 1.0, 1)
    assert e.roofline == pytest.approx(laptop.peak("3xtf32") / laptop.peak("float32"))
    assert estimate("A100", gpu, (1, 1), torch.float16, False, "", 1, 0.0, 0.0).waves is None


def test_explain_prints_it_as_computed():
    text = str(fastconv.explain((1, 512, 7, 7), (512, 512, 3, 3), padding=1, backend="cuda"))
    for part in ("computed for H100, not measured", "tile", "splits", "waves", "bound by", "%"):
        assert part in text
    direct = fastconv.explain((1, 5, 7, 6), (9, 5, 3, 3), backend="cuda", dtype=torch.float16)
    assert "not modelled" in str(direct)
    assert fastconv.explain((1, 8, 7, 6), (8, 8, 3, 3), backend="cpu").estimate is None
    weights = fastconv.explain(
        (64, 64, 56, 48), (64, 64, 1, 1), backend="cuda", direction="weight_grad"
    )
    assert weights.algorithm == "conv1x1" and weights.estimate.splits > 32
    double = fastconv.explain((1, 8, 7, 6), (8, 8, 3, 3), backend="cuda", dtype=torch.float64)
    assert double.estimate is None and double.algorithm == "direct"
    with pytest.raises(ValueError, match="gpu must be one of A100"):
        fastconv.explain((1, 8, 7, 6), (8, 8, 3, 3), backend="cuda", gpu="V100")


def properties(name, sms, shared=228 << 10, l2=50 << 20):
    """Of torch.cuda.get_device_properties()."""
    sizes = dict(shared_memory_per_multiprocessor=shared, L2_cache_size=l2)
    return SimpleNamespace(name=name, multi_processor_count=sms, **sizes)


@pytest.mark.parametrize(
    "name, sms, known",
    [
        ("NVIDIA H100 80GB HBM3", 132, "H100"),
        ("NVIDIA H200", 132, "H200"),
        ("NVIDIA A100-SXM4-80GB", 108, "A100"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", 24, "RTX 4060 Laptop"),
        ("NVIDIA H100 PCIe", 114, None),  # another bandwidth
        ("NVIDIA H200 MIG 3g.71gb", 60, None),
        ("NVIDIA L4", 58, None),
    ],
)
def test_a_gpu_is_known_by_its_name_and_multiprocessors(name, sms, known):
    found = gpu_of(properties(name, sms, shared=200 << 10, l2=1 << 20))
    assert found == (known and replace(GPUS[known], shared_per_sm=200 << 10, l2=1 << 20))


def test_a_gpu_has_the_clocks_that_its_driver_tells():
    """As csrc/cuda/place.cpp reads them: an A100 of 40 GB has three quarters of the bandwidth."""
    told = dict(clock_rate=1410000, memory_clock_rate=1215000, memory_bus_width=5120)
    gpu = properties("NVIDIA A100-SXM4-40GB", 108)
    found = gpu_of(SimpleNamespace(**vars(gpu), **told))
    assert found.bandwidth == pytest.approx(1.555e12, rel=1e-3)
    assert found.clock == pytest.approx(1.41e9)
    silent = SimpleNamespace(**vars(gpu), **dict.fromkeys(told, 0))
    assert gpu_of(silent) == gpu_of(gpu) and gpu_of(gpu).bandwidth == GPUS["A100"].bandwidth
    assert gpu_of(properties("NVIDIA GH200 480GB", 132)) is None


def test_explain_is_of_the_tensors_gpu_else_of_an_h100(monkeypatch):
    def answer(name, sms=132, **options):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties(name, sms))
        with FakeTensorMode():
            x = torch.empty(2, 64, 9, 11, dtype=torch.half, device="cuda:0")
            return fastconv.explain(x, (64, 64, 3, 3), padding=1, **options)

    own = answer("NVIDIA H200")
    assert own.estimate.gpu == "NVIDIA H200" and "computed for NVIDIA H200" in str(own)
    there = fastconv.explain(
        (2, 64, 9, 11), (64, 64, 3, 3), padding=1, backend="cuda", dtype=torch.half, gpu="H200"
    )
    assert own.estimate.floor == there.estimate.floor < answer("NVIDIA H100 80GB").estimate.floor
    unknown = answer("NVIDIA L4", 58)
    assert unknown.estimate is None and unknown.algorithm == "implicit_gemm"
    assert answer("NVIDIA L4", 58, gpu="A100").estimate.gpu == "A100"
    cpu = fastconv.explain(torch.empty(2, 64, 9, 11), (64, 64, 3, 3), backend="cuda")
    assert cpu.estimate.gpu == "H100"


def test_the_table_in_results_is_what_the_planner_computes_today(tmp_path):
    assert computed.main(["--csv", str(tmp_path / "table.csv")]) == 0
    made = (tmp_path / "table.csv").read_text()
    kept = ROOT / "bench/results/computed_not_measured.csv"
    assert made == kept.read_text(), "run bench/computed.py"
    table = list(csv.DictReader(made.splitlines()))
    assert len(table) == len(GPUS) * 3 * len(LAYERS) * len(DIRECTIONS)
    for column in ("waves", "bound", "roofline µs", "% of roofline"):
        assert f"{column} (computed)" in table[0]
    shares = [row["% of roofline (computed)"] for row in table]
    assert all(not share or 0 < float(share) <= 100 for share in shares)
    assert not any(math.isnan(float(share)) for share in shares if share)
