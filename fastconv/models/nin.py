"""Network in Network. Source: Lin, Chen, Yan, Network In Network, 2013; sizes of the authors'
ImageNet model."""

from __future__ import annotations

from torch import nn

from .. import nn as fastconv_nn


def nin(num_classes: int = 1000, dropout: float = 0.5, *, layers=fastconv_nn) -> nn.Sequential:
    """NiN for (N, 3, 224, 224): four blocks, global average pooling, no fully connected layer.

    A block is a convolution and two 1x1 convolutions, each with its ReLU; a 1x1 convolution is a
    fully connected layer applied at every pixel. The last block has one channel per class.

    Args:
        dropout: probability before the last block.
        layers: a namespace with the classes of fastconv.nn.
    """

    def block(in_channels: int, out_channels: int, kernel_size: int, stride=1, padding=0):
        conv = layers.Conv2d
        return nn.Sequential(
            conv(in_channels, out_channels, kernel_size, stride, padding, activation="relu"),
            conv(out_channels, out_channels, 1, activation="relu"),
            conv(out_channels, out_channels, 1, activation="relu"),
        )

    model = nn.Sequential(
        block(3, 96, 11, stride=4),
        layers.MaxPool2d(3, stride=2),
        block(96, 256, 5, padding=2),
        layers.MaxPool2d(3, stride=2),
        block(256, 384, 3, padding=1),
        layers.MaxPool2d(3, stride=2),
        nn.Dropout(dropout),
        block(384, num_classes, 3, padding=1),
        layers.GlobalAvgPool2d(),
        nn.Flatten(),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model
