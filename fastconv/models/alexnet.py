"""AlexNet in torchvision's form. Source: Krizhevsky, One weird trick for parallelizing
convolutional neural networks, 2014; names and sizes as in pytorch/vision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import nn as fastconv_nn
from ._builder import torchvision_signature


class AlexNet(nn.Module):
    """Five convolutions and three linear layers: (N, 3, H, W), 224x224 -> (N, num_classes).

    Constructor and state_dict are torchvision's.

    Args:
        dropout: probability before each of the first two linear layers.
        namespace: where the layer classes come from, such as fastconv.nn.
    """

    def __init__(
        self, num_classes: int = 1000, dropout: float = 0.5, *, namespace=fastconv_nn
    ) -> None:
        super().__init__()
        conv, pool = namespace.Conv2d, namespace.MaxPool2d
        self.features = nn.Sequential(
            conv(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            pool(kernel_size=3, stride=2),
            conv(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            pool(kernel_size=3, stride=2),
            conv(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            conv(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            conv(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            pool(kernel_size=3, stride=2),
        )
        self.avgpool = namespace.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout),
            namespace.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(p=dropout),
            namespace.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            namespace.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


@torchvision_signature
def alexnet(*, layers=fastconv_nn, **options) -> AlexNet:
    """AlexNet; `options` are AlexNet's."""
    return AlexNet(**options, namespace=layers)
