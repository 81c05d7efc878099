"""GoogLeNet. Source: Szegedy et al., Going Deeper with Convolutions, 2014, table 1 and section 5;
names, batch norm and auxiliary heads as in pytorch/vision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import nn as fastconv_nn
from ._builder import torchvision_signature

# The kernel of an Inception block's third path.
_THIRD_PATH_KERNEL = {"paper": 5, "torchvision": 3}


class GoogLeNetOutputs(NamedTuple):
    """What a training GoogLeNet with auxiliary heads returns: three (N, num_classes)."""

    logits: Tensor
    aux_logits2: Tensor | None
    aux_logits1: Tensor | None


class BasicConv2d(nn.Module):
    """relu(batch_norm(conv2d(x))), the convolution without a bias."""

    def __init__(
        self, in_channels: int, out_channels: int, *, namespace=fastconv_nn, **options
    ) -> None:
        super().__init__()
        self.conv = namespace.Conv2d(in_channels, out_channels, bias=False, **options)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Four paths side by side, concatenated along the channels.

    1x1; 1x1 -> 3x3; 1x1 -> third_path_kernel; 3x3 max pooling -> 1x1.
    (N, in_channels, H, W) -> (N, ch1x1 + ch3x3 + ch5x5 + pool_proj, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3red: int,
        ch3x3: int,
        ch5x5red: int,
        ch5x5: int,
        pool_proj: int,
        third_path_kernel: int = 5,
        *,
        namespace=fastconv_nn,
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, kernel: int) -> BasicConv2d:
            return BasicConv2d(
                inputs, outputs, kernel_size=kernel, padding=kernel // 2, namespace=namespace
            )

        self.branch1 = conv(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(conv(in_channels, ch3x3red, 1), conv(ch3x3red, ch3x3, 3))
        self.branch3 = nn.Sequential(
            conv(in_channels, ch5x5red, 1), conv(ch5x5red, ch5x5, third_path_kernel)
        )
        self.branch4 = nn.Sequential(
            namespace.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True),
            conv(in_channels, pool_proj, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class InceptionAux(nn.Module):
    """An auxiliary classifier: (N, in_channels, H, W) -> (N, num_classes)."""

    def __init__(
        self, in_channels: int, num_classes: int, dropout: float = 0.7, *, namespace=fastconv_nn
    ) -> None:
        super().__init__()
        self.avgpool = namespace.AdaptiveAvgPool2d((4, 4))
        self.conv = BasicConv2d(in_channels, 128, kernel_size=1, namespace=namespace)
        self.fc1 = namespace.Linear(2048, 1024)
        self.fc2 = namespace.Linear(1024, num_classes)
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(self.avgpool(x)), 1)
        x = nn.functional.relu(self.fc1(x), inplace=True)
        return self.fc2(self.dropout(x))


def _transform_input(x: Tensor) -> Tensor:
    """From (x - mean) / std with ImageNet's figures, channel by channel, to (x - 0.5) / 0.5."""
    figures = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
    channels = [
        x[:, i : i + 1] * (std / 0.5) + (mean - 0.5) / 0.5 for i, (mean, std) in enumerate(figures)
    ]
    return torch.cat(channels, 1)


class GoogLeNet(nn.Module):
    """Nine Inception blocks: (N, 3, H, W), 224x224 -> (N, num_classes), or GoogLeNetOutputs.

    The outputs of the auxiliary heads come with the main one in training only. Constructor and
    state_dict are torchvision's, and so are the sizes with `variant="torchvision"`. Both variants
    have torchvision's batch norm, which the paper's network had not.

    Args:
        aux_logits: add the two auxiliary heads.
        transform_input: turn ImageNet's normalisation of the input into (x - 0.5) / 0.5.
        init_weights: N(0, 0.01) truncated to [-2, 2]; None means True.
        dropout: probability before the last layer; dropout_aux: in the auxiliary heads.
        variant: "paper" (5x5 convolutions in the third path) or "torchvision" (3x3).
        namespace: where the layer classes come from, such as fastconv.nn.

    Raises:
        ValueError: an unknown variant.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        aux_logits: bool = True,
        transform_input: bool = False,
        init_weights: bool | None = None,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        *,
        variant: str = "paper",
        namespace=fastconv_nn,
    ) -> None:
        super().__init__()
        if variant not in _THIRD_PATH_KERNEL:
            raise ValueError(f'variant must be "paper" or "torchvision", got {variant!r}')
        self.aux_logits = aux_logits
        self.transform_input = transform_input

        def conv(*channels: int, **options) -> BasicConv2d:
            return BasicConv2d(*channels, **options, namespace=namespace)

        def pool(kernel_size: int) -> nn.Module:
            return namespace.MaxPool2d(kernel_size, stride=2, ceil_mode=True)

        def inception(*channels: int) -> Inception:
            return Inception(*channels, _THIRD_PATH_KERNEL[variant], namespace=namespace)

        self.conv1 = conv(3, 64, kernel_size=7, stride=2, padding=3)
        self.maxpool1 = pool(3)
        self.conv2 = conv(64, 64, kernel_size=1)
        self.conv3 = conv(64, 192, kernel_size=3, padding=1)
        self.maxpool2 = pool(3)
        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)
        self.maxpool3 = pool(3)
        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.maxpool4 = pool(2)
        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)
        self.aux1 = self.aux2 = None
        if aux_logits:
            self.aux1 = InceptionAux(512, num_classes, dropout_aux, namespace=namespace)
            self.aux2 = InceptionAux(528, num_classes, dropout_aux, namespace=namespace)
        self.avgpool = namespace.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(p=dropout)
        self.fc = namespace.Linear(1024, num_classes)
        if init_weights is None or init_weights:
            self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, mean=0.0, std=0.01, a=-2, b=2)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        if self.transform_input:
            x = _transform_input(x)
        with_aux = self.training and self.aux_logits
        x = self.maxpool1(self.conv1(x))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if with_aux and self.aux1 is not None else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if with_aux and self.aux2 is not None else None
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        x = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return GoogLeNetOutputs(x, aux2, aux1) if with_aux else x


@torchvision_signature
def googlenet(*, layers=fastconv_nn, **options) -> GoogLeNet:
    """GoogLeNet; `options` are GoogLeNet's, among them `variant`."""
    return GoogLeNet(**options, namespace=layers)
