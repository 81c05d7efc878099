"""VGG 11, 13, 16 and 19, with and without batch norm. Source: Simonyan, Zisserman, Very Deep
Convolutional Networks for Large-Scale Image Recognition, 2014, table 1 columns A, B, D, E; names
as in pytorch/vision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import nn as fastconv_nn
from ._builder import torchvision_signature

# Output channels of each 3x3 convolution, by stage; a 2x2 max pooling ends each stage.
_STAGES = {
    11: ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    13: ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    16: ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """`features`, 7x7 adaptive pooling, three linear layers: (N, 3, H, W) -> (N, num_classes).

    Constructor and state_dict are torchvision's.

    Args:
        features: the convolutions, ending in 512 channels.
        init_weights: Kaiming's normal distribution for convolutions, N(0, 0.01) for linear layers.
        dropout: probability after each of the first two linear layers.
        namespace: where the layer classes come from, such as fastconv.nn.
    """

    def __init__(
        self,
        features: nn.Module,
        num_classes: int = 1000,
        init_weights: bool = True,
        dropout: float = 0.5,
        *,
        namespace=fastconv_nn,
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = namespace.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            namespace.Linear(512 * 7 * 7, 4096),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            namespace.Linear(4096, 4096),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            namespace.Linear(4096, num_classes),
        )
        if init_weights:
            self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def _vgg(depth: int, batch_norm: bool, layers, options) -> VGG:
    features: list[nn.Module] = []
    in_channels = 3
    for stage in _STAGES[depth]:
        for out_channels in stage:
            features.append(layers.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
            if batch_norm:
                features.append(nn.BatchNorm2d(out_channels))
            features.append(nn.ReLU(inplace=True))
            in_channels = out_channels
        features.append(layers.MaxPool2d(kernel_size=2, stride=2))
    return VGG(nn.Sequential(*features), **options, namespace=layers)


@torchvision_signature
def vgg11(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 11 weight layers; `options` are VGG's."""
    return _vgg(11, False, layers, options)


@torchvision_signature
def vgg11_bn(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 11 weight layers and batch norm; `options` are VGG's."""
    return _vgg(11, True, layers, options)


@torchvision_signature
def vgg13(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 13 weight layers; `options` are VGG's."""
    return _vgg(13, False, layers, options)


@torchvision_signature
def vgg13_bn(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 13 weight layers and batch norm; `options` are VGG's."""
    return _vgg(13, True, layers, options)


@torchvision_signature
def vgg16(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 16 weight layers; `options` are VGG's."""
    return _vgg(16, False, layers, options)


@torchvision_signature
def vgg16_bn(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 16 weight layers and batch norm; `options` are VGG's."""
    return _vgg(16, True, layers, options)


@torchvision_signature
def vgg19(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 19 weight layers; `options` are VGG's."""
    return _vgg(19, False, layers, options)


@torchvision_signature
def vgg19_bn(*, layers=fastconv_nn, **options) -> VGG:
    """VGG with 19 weight layers and batch norm; `options` are VGG's."""
    return _vgg(19, True, layers, options)
