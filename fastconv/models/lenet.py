"""LeNet-5. Source: LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document
Recognition, 1998, section II.B, in the simplified form with full connections between maps."""

from __future__ import annotations

from torch import nn

from .. import nn as fastconv_nn


def lenet(num_classes: int = 10, *, layers=fastconv_nn) -> nn.Sequential:
    """LeNet-5 for (N, 1, 28, 28): two convolutions with average pooling, three linear layers.

    Weights start from Xavier's uniform distribution, which suits the sigmoids, biases from zero.

    Args:
        layers: a namespace with the classes of fastconv.nn.
    """
    model = nn.Sequential(
        layers.Conv2d(1, 6, 5, padding=2),
        nn.Sigmoid(),
        layers.AvgPool2d(2, 2),
        layers.Conv2d(6, 16, 5),
        nn.Sigmoid(),
        layers.AvgPool2d(2, 2),
        nn.Flatten(),
        layers.Linear(400, 120),
        nn.Sigmoid(),
        layers.Linear(120, 84),
        nn.Sigmoid(),
        layers.Linear(84, num_classes),
    )
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return model
