"""KV-compressed PixArt-Sigma: parameter count, an explicit reference, odd grids."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.backbones.pixart import SIZES, Config, PixArt
from gesso.nn.kv_compress import CompressedSelfAttention
from gesso.types import Cond, GessoError


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in PixArt(SIZES[name]).parameters())


def test_compression_adds_112896_parameters_at_xl() -> None:
    assert parameters("sigma-2k-kv") - parameters("sigma-2k") == 112_896


def randomised(module: nn.Module, std: float = 0.3) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=std)
    return module.eval()


def by_loops(attn: CompressedSelfAttention, x: Tensor, grid: tuple[int, int], r: int) -> Tensor:
    """Pool every window by hand, normalise by hand, attend by SDPA."""
    height, width = grid
    q, k, v = attn.qkv(x).chunk(3, dim=-1)
    weight, bias = attn.sr.weight[:, 0], attn.sr.bias  # [dim, r, r]
    pooled = []
    for y in (k, v):
        image = y.view(len(y), height, width, -1)
        rows = []
        for i in range(height // r):
            for j in range(width // r):
                window = image[:, i * r : (i + 1) * r, j * r : (j + 1) * r]  # [B, r, r, dim]
                z = (window * weight.permute(1, 2, 0)).sum((1, 2)) + bias
                z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, False, keepdim=True) + 1e-5).sqrt()
                rows.append(z * attn.norm.weight + attn.norm.bias)
        pooled.append(torch.stack(rows, dim=1))  # [B, M, dim]
    k, v = pooled
    q, k, v = (y.view(len(y), y.shape[1], attn.num_heads, -1).transpose(1, 2) for y in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v)
    return attn.proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("grid", "r"), [((4, 6), 2), ((6, 3), 3), ((5, 7), 2), ((8, 8), 4)])
def test_attention_equals_pooling_by_hand(grid: tuple[int, int], r: int) -> None:
    torch.manual_seed(0)
    attn = randomised(CompressedSelfAttention(16, 2, r))
    x = torch.randn(2, grid[0] * grid[1], 16)
    with torch.no_grad():
        ours, expected = attn(x, grid), by_loops(attn, x, grid, r)
    assert expected.std() > 0.1
    assert (ours - expected).abs().max() < 1e-5


def test_the_convolution_starts_as_a_mean_and_keeps_constant_grids() -> None:
    attn = CompressedSelfAttention(8, 2, 2)
    constant = torch.randn(1, 8, 1, 1).expand(1, 8, 4, 6)
    assert torch.allclose(attn.sr(constant), constant[:, :, :2, :3], atol=1e-6)


def test_only_the_named_blocks_compress_and_the_model_runs_at_any_size() -> None:
    torch.manual_seed(0)
    options = {"depth": 3, "hidden_size": 48, "num_heads": 4, "text_dim": 20}
    model = randomised(PixArt(Config(**options, kv_compress=2, kv_blocks=[1, 2])), 0.2)
    held = {k.split(".")[1] for k in model.state_dict() if "attn.sr" in k}
    assert held == {"1", "2"}
    cond = Cond(tokens=torch.randn(1, 3, 20))
    with torch.no_grad():
        for height, width in ((8, 8), (6, 14)):
            x = torch.randn(1, 4, height, width)
            assert model(x, torch.ones(1), cond).value.shape == x.shape
    with pytest.raises(GessoError, match="0 to 2"):
        PixArt(Config(**options, kv_compress=2, kv_blocks=[3]))
