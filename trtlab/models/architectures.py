"""The networks of the course in plain PyTorch. Weights are random until loaded; each is made for torch.onnx.export."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class _ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm and, unless `relu` is False, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        if relu:
            self.relu = nn.ReLU()


class _DigitBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: keeps the shape (N, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _ConvNorm(channels, channels, 3)
        self.second = _ConvNorm(channels, channels, 3, relu=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.second(self.first(x)))


class DigitCnn(nn.Module):
    """Eight convolutions with two shortcuts: digits (N, 1, 28, 28) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(1, 16, 3)
        self.block1 = _DigitBlock(16)
        self.down1 = _ConvNorm(16, 32, 3, stride=2)
        self.block2 = _DigitBlock(32)
        self.down2 = _ConvNorm(32, 48, 3, stride=2)
        self.last = _ConvNorm(48, 64, 3)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Digits (N, 1, 28, 28) to logits (N, 10)."""
        x = self.block2(self.down1(self.block1(self.stem(x))))
        x = self.last(self.down2(x))
        return self.classifier(x.mean(dim=(2, 3)))


class _Bottleneck(nn.Module):
    """ResNet's bottleneck (He et al. 2015, arXiv:1512.03385): 1x1, 3x3, 1x1 convolution and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = _ConvNorm(inputs, width, 1)
        self.spatial = _ConvNorm(width, width, 3, stride)
        self.expand = _ConvNorm(width, 4 * width, 1, relu=False)
        changes = stride != 1 or inputs != 4 * width
        self.shortcut = _ConvNorm(inputs, 4 * width, 1, stride, relu=False) if changes else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.expand(self.spatial(self.reduce(x))) + self.shortcut(x))


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_Bottleneck(4 * width, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(_Bottleneck(inputs, width, stride), *rest)


class ResNet50(nn.Module):
    """ResNet-50 v1.5 (the stride is in the 3x3 convolution): images (N, 3, 224, 224) to logits (N, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 64, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage1 = _stage(64, width=64, blocks=3, stride=1)
        self.stage2 = _stage(256, width=128, blocks=4, stride=2)
        self.stage3 = _stage(512, width=256, blocks=6, stride=2)
        self.stage4 = _stage(1024, width=512, blocks=3, stride=2)
        self.classifier = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 224, 224) to logits (N, 1000)."""
        x = self.pool(self.stem(x))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.classifier(x.mean(dim=(2, 3)))


class Mlp(nn.Module):
    """Linear layers with ReLU between them: (N, sizes[0]) to (N, sizes[-1])."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, sizes[0]) to (N, sizes[-1])."""
        for linear in self.linears[:-1]:
            x = functional.relu(linear(x))
        return self.linears[-1](x)


class _Attention(nn.Module):
    """Multi-head self-attention written out: three projections, two matrix products, one softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return self.output((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class _EncoderLayer(nn.Module):
    """One layer of BERT (Devlin et al. 2018, arXiv:1810.04805): attention, then two linear layers with GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.grow = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.shrink = nn.Linear(4 * width, width)
        self.output_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x))
        return self.output_norm(x + self.shrink(self.gelu(self.grow(x))))


class TransformerEncoder(nn.Module):
    """Token ids (N, S), int64, S up to 512, to hidden states (N, S, width). Every token is attended to: no mask."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(512, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(_EncoderLayer(width, heads) for _ in range(layers)))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids (N, S) to hidden states (N, S, width)."""
        x = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        return self.layers(self.norm(x))


def with_random_weights(architecture: Callable[..., nn.Module], *sizes: object) -> nn.Module:
    """A network whose random parameters, the same on every call, keep activations within FP16's range.

    Batch norm gets scales, offsets, means and variances as uneven as trained ones, so folding it changes every weight;
    the last scale of a residual branch is small, so that sums do not grow.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = architecture(*sizes)
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, *((0.2, 0.5) if "expand" in name else (0.7, 1.3)))
                nn.init.normal_(part.bias, std=0.1)
                part.running_mean = torch.empty(part.num_features).normal_(std=0.1)
                part.running_var = torch.empty(part.num_features).uniform_(0.5, 1.5)
            elif isinstance(part, nn.LayerNorm):
                nn.init.uniform_(part.weight, 0.8, 1.2)
                nn.init.normal_(part.bias, std=0.1)
            elif isinstance(part, TransformerEncoder):
                nn.init.normal_(part.positions)
    return module
