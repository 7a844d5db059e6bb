"""The GPU kernels, without a GPU: their values by Triton's interpreter, their compilation by its own compiler."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from reloss.ranking import soft_rank

pytest.importorskip("triton")

# Triton decides when a kernel is defined whether it is interpreted, hence a process of its own.
COMPARE = """
import torch
from torch.testing import assert_close
from reloss.ranking.fused import fused_sweep, fused_sweep_back
from reloss.ranking.networks import Comparator, network_rank

for n in (2, 3, 5, 17, 64, 100):
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(3, n, generator=generator)
    values[1] = 1.0
    values[2, : n // 2] = values[2, 0]
    values.requires_grad_()
    gradient = torch.randn(3, n, generator=generator)
    for steepness, art_lambda in ((5.0, 0.25), (20.0, 0.4)):
        ranks, saved = fused_sweep(values.detach(), steepness, art_lambda)
        expected = network_rank(values, "bitonic", Comparator(steepness, "logistic_phi", art_lambda))
        assert_close(ranks, expected.detach(), rtol=1e-5, atol=1e-5 * n)
        (slope,) = torch.autograd.grad(expected, values, gradient)
        found = fused_sweep_back(gradient, saved, steepness, art_lambda)
        assert_close(found, slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()))
print("equal")
"""


def test_interpreted_kernels_equal_the_reference():
    done = subprocess.run(
        [sys.executable, "-c", COMPARE],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_kernels_compile_for_nvidia_gpus(name, capability, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from reloss.ranking import fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(fused, name)
    kinds = {"n": "i32", "steepness": "fp32", "art_lambda": "fp32", "SIZE": "constexpr", "BLOCKS": "constexpr"}
    signature = {argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names}
    source = ASTSource(kernel, signature, {"SIZE": 256, "BLOCKS": 8})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 48 << 10  # what every GPU gives a program without being asked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n", [2, 3, 17, 100, 256, 1024, 4096])
def test_kernels_equal_the_reference_on_a_gpu(n, monkeypatch):
    values = torch.randn(4, n, device="cuda", generator=torch.Generator("cuda").manual_seed(n))
    values[1] = 1.0
    gradient = torch.randn_like(values)

    def ranks_and_slopes(fused):
        monkeypatch.setenv("RELOSS_FUSED", fused)
        leaf = values.clone().requires_grad_()
        ranks = soft_rank(leaf)
        return ranks.detach(), torch.autograd.grad(ranks, leaf, gradient)[0]

    (ranks, slopes), (expected, reference) = ranks_and_slopes("1"), ranks_and_slopes("0")
    assert_close(ranks, expected, rtol=1e-4, atol=1e-4 * n)
    assert_close(slopes, reference, rtol=1e-3, atol=1e-3 * float(reference.abs().max()))
