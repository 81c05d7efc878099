"""The table of GPUs, the roofline, and the planner's answers for every layer on each of them."""

import csv
import math
import sys
from pathlib import Path

import pytest
import torch

import fastconv
from fastconv.explain import DIRECTIONS
from fastconv.gpus import GPUS, conv_work, estimate
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
    """TFLOP/s; H100's 67 of float32 are promised at 1.98 GHz, those of tensor cores at 1.83."""
    for gpu, *peaks in (("A100", 312, 156, 19.5), ("H100", 989, 495, 67 * 1.83 / 1.98)):
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
        return estimate("A100", (operations, moved), dtype, tf32, "t", 1, 1.0, cycles).roofline

    peak = gpu.peak("half")
    assert share(peak, 1, 2 * gpu.clock) == pytest.approx(0.5)
    assert share(1, gpu.bandwidth, 4 * gpu.clock) == pytest.approx(0.25)
    assert share(peak, 1, 1) == pytest.approx(1)  # cycles below the peak are not believed
    assert share(1, gpu.bandwidth, 1) == pytest.approx(1)
    # A laptop's 3xTF32 is slower than its float32 outside tensor cores, which is then the roofline.
    laptop = GPUS["RTX 4060 Laptop"]
    e = estimate("RTX 4060 Laptop", (10**12, 1), torch.float32, False, "t", 1, 1.0, 1)
    assert e.roofline == pytest.approx(laptop.peak("3xtf32") / laptop.peak("float32"))
    assert estimate("A100", (1, 1), torch.float16, False, "", 1, 0.0, 0.0).waves is None


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
