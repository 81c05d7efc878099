"""The emulator that runs the CUDA kernels on the host: it must catch what a GPU would punish.

Each toy kernel (tests/emulator/toys.cu) is right with fault 0 and has one planted fault otherwise.
"""

import ctypes
import re

import emulator
import pytest
import torch

from fastconv.testing.compare import relative_rms

RUNS = [("ascending", 1), ("descending", 1), ("random", 1), ("random", 2)]


class Toy(ctypes.Structure):
    _fields_ = [
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("fault", ctypes.c_int32),
    ]


def run(name, input, output_size, count, fault=0, right=True, order="ascending", seed=1, **options):
    """(output, what went wrong or None)."""
    emulator.configure(order, seed, **options)
    launcher = getattr(emulator.library(), f"toy_{name}")
    launcher.restype = ctypes.c_char_p
    output = torch.full(output_size, torch.nan)
    with emulator.buffers(right, input=input, output=output) as b:
        toy = Toy(b["input"].pointer, b["output"].pointer, count, fault)
        error = launcher(ctypes.byref(toy))
        return b["output"].tensor.clone(), error and error.decode()


def run_orders(*args, **keywords):
    """The outputs of all fiber orders, none of which may fail."""
    outputs = []
    for order, seed in RUNS:
        output, error = run(*args, order=order, seed=seed, **keywords)
        assert error is None
        outputs.append(output)
    return outputs


def same(outputs):
    return all(torch.equal(o, outputs[0]) for o in outputs)


def test_reverse():
    x = torch.randn(96, 4)
    outputs = run_orders("reverse", x, (96, 4), 96)
    assert same(outputs) and torch.equal(outputs[0], x.flip(0))


def test_missing_wait_shows_poison():
    for output in run_orders("reverse", torch.randn(96, 4), (96, 4), 96, fault=1):
        assert output.isnan().all()


def test_missing_barrier_shows_poison():
    for output in run_orders("reverse", torch.randn(96, 4), (96, 4), 96, fault=2):
        assert output.isnan().any()


def test_rounds():
    x = torch.arange(128.0)
    outputs = run_orders("rounds", x, (128,), 128)
    assert same(outputs) and torch.equal(outputs[0], x.sum().expand(128))


def test_barrier_missing_before_a_rewrite_shows_between_orders():
    outputs = run_orders("rounds", torch.randn(128), (128,), 128, fault=1)
    assert not any(o.isnan().any() for o in outputs)  # poison alone would miss it
    assert not same(outputs)


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_divergent_barrier(order):
    _, error = run("rounds", torch.randn(128), (128,), 128, fault=2, order=order)
    assert re.search(r"kernel rounds, block \(0, 0, 0\): deadlock; 64 of 128 threads exited", error)
    assert re.search(r"64 wait at __syncthreads toys.cu:\d+", error)
    _, error = run("rounds", torch.randn(128), (128,), 128, fault=3, order=order)
    assert re.search(r"divergent __syncthreads at toys.cu:\d+, while \d+ threads wait at", error)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("count", [80, 83])  # 83 floats are not a multiple of 16 bytes
def test_twice(count, right):
    x = torch.randn(count)
    for output in run_orders("twice", x, (count,), count, right=right):
        assert torch.equal(output, x * 2)


def test_read_past_the_end():
    _, error = run("twice", torch.randn(80), (80,), 80, fault=1)
    assert "kernel twice, block (1, 0, 0), thread (15, 0, 0): ld.global: read of 4 bytes" in error
    assert "0 bytes past the end of buffer input (320 bytes)" in error
    _, error = run("twice", torch.randn(80), (80,), 80, fault=2)
    assert "thread (15, 0, 0): read 0 bytes past the end of buffer input" in error


def test_read_before_the_start():
    _, error = run("twice", torch.randn(80), (80,), 80, fault=3, right=False)
    assert "thread (15, 0, 0): read 4 bytes before buffer input" in error


def test_misaligned_vector():
    _, error = run("twice", torch.randn(80), (80,), 80, fault=4)
    assert "ld.global of 8 bytes, misaligned, at byte 4 of buffer input" in error


@pytest.mark.parametrize("right", [True, False])
def test_write_past_the_end(right):
    _, error = run("twice", torch.randn(83), (83,), 83, fault=5, right=right)
    assert "st.global: write of 4 bytes 0 bytes past the end of buffer output" in error
    # Between the end and the forbidden page there are canaries.
    _, error = run("twice", torch.randn(83), (83,), 83, fault=6, right=right)
    assert "kernel twice: wrote 0 bytes past the end of buffer output (332 bytes)" in error
    if right:
        _, error = run("twice", torch.randn(80), (80,), 80, fault=6)
        assert "thread (15, 0, 0): write 0 bytes past the end of buffer output" in error


def test_the_emulator_runs_on_after_a_fault():
    for fault in (1, 2, 0):
        x = torch.randn(80)
        output, error = run("twice", x, (80,), 80, fault=fault)
        assert (error is None) == (fault == 0)
    assert torch.equal(output, x * 2)
    assert emulator.take_log()[-3:] == ["twice"] * 3


def test_slab():
    x = torch.randn(96)
    outputs = run_orders("slab", x, (96,), 96)
    assert same(outputs) and torch.equal(outputs[0], x + 0 + 1)


def test_missing_syncwarp_shows_between_orders():
    outputs = run_orders("slab", torch.randn(96), (96,), 96, fault=1)
    assert not any(o.isnan().any() for o in outputs)
    assert not same(outputs)


def test_divergent_warp():
    _, error = run("slab", torch.randn(96), (96,), 96, fault=2)
    assert "divergent warp: vote over lanes 0xffffffff, while lanes 0xffff wait in shfl" in error


def test_outside_shared_memory():
    _, error = run("slab", torch.randn(96), (96,), 96, fault=3)
    assert "st.shared of 4 bytes at shared offset 384, outside the 384 bytes" in error
    _, error = run("slab", torch.randn(96), (96,), 96, fault=4)
    assert "thread (95, 0, 0): write past the end of shared memory (384 bytes)" in error


def run_product(fault):
    operands = torch.randn(24, 16).half()
    outputs = run_orders("product", operands, (16, 8), 0, fault=fault, count_banks=True)
    phases, cycles = emulator.take_bank_count()
    return operands, outputs, cycles / phases


def test_ldmatrix_and_mma():
    operands, outputs, conflict = run_product(0)
    truth = operands[:16].double() @ operands[16:].double().T
    assert same(outputs) and relative_rms(outputs[0], truth) < 1e-7
    assert conflict == 1


def test_swizzle_forgotten_on_one_side():
    operands, outputs, _ = run_product(1)
    assert relative_rms(outputs[0], operands[:16].double() @ operands[16:].double().T) > 0.1


def test_bank_conflicts_are_counted():
    operands, outputs, conflict = run_product(2)
    assert relative_rms(outputs[0], operands[:16].double() @ operands[16:].double().T) < 1e-7
    assert conflict > 1.5


def product_error(fault, k=1024):
    torch.manual_seed(0)
    operands = torch.randn(24, k)
    output, error = run("product_float", operands, (16, 8), k, fault=fault)
    assert error is None
    return relative_rms(output, operands[:16].double() @ operands[16:].double().T)


def test_missing_promotion_shows():
    assert product_error(0) < 8e-7
    assert product_error(1) > 5e-6


def test_missing_tf32_conversion_shows():
    assert 2e-4 < product_error(2) < 4e-4
    assert product_error(3) > 6e-4


@pytest.mark.parametrize(
    "arch, limit", [(80, 163 << 10), (86, 99 << 10), (89, 99 << 10), (90, 227 << 10)]
)
def test_launch_limits(arch, limit):
    nothing = torch.zeros(1)
    assert run("idle", nothing, (1,), 1024, fault=limit, arch=arch)[1] is None
    error = run("idle", nothing, (1,), 1024, fault=limit + 16, arch=arch)[1]
    assert error.startswith("kernel idle: more shared memory than a block may have")
    assert "threads" in run("idle", nothing, (1,), 1025, arch=arch)[1]


def test_conversions():
    values = torch.cat([torch.randn(4096) * 10.0**e for e in range(-12, 8)])
    ties = (torch.arange(1, 4096) / 2048 + 1).repeat(2) * torch.tensor([1.0, -1]).repeat(4095)
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65519.99, 65520, 6e-8, 3e-8]
    )
    values = torch.cat([values, ties, special])
    n = values.numel()
    halves, bf16s = torch.empty(n, dtype=torch.float16), torch.empty(n, dtype=torch.bfloat16)
    tf32s = torch.empty(n)
    emulator.library().toy_conversions(
        *(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(n)),
        *(ctypes.c_void_p(t.data_ptr()) for t in (halves, bf16s, tf32s)),
    )
    torch.testing.assert_close(halves, values.half(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(bf16s, values.bfloat16(), rtol=0, atol=0, equal_nan=True)
    normal = values.isfinite() & (values.abs() > 1e-30)
    m, e = torch.frexp(values[normal].double())
    away = torch.sign(m) * torch.floor(m.abs() * 2048 + 0.5) / 2048  # 11 bits of significand
    assert torch.equal(tf32s[normal].double(), torch.ldexp(away, e))


def test_widening():
    halves, bf16s = torch.empty(65536), torch.empty(65536)
    emulator.library().toy_widen(*(ctypes.c_void_p(t.data_ptr()) for t in (halves, bf16s)))
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for made, dtype in ((halves, torch.float16), (bf16s, torch.bfloat16)):
        torch.testing.assert_close(made, bits.view(dtype).float(), rtol=0, atol=0, equal_nan=True)
