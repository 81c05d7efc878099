"""The classic pattern [CONV -> ReLU -> POOL] * N -> [FC -> ReLU] * M -> OUTPUT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .. import nn as fastconv_nn


def classic_cnn(
    input: tuple[int, int, int] = (3, 32, 32),
    conv_blocks: int | Sequence[int] = 2,
    fc_blocks: int | Sequence[int] = 1,
    classes: int = 10,
    *,
    layers=fastconv_nn,
) -> nn.Sequential:
    """A network for (N, *input): 3x3 convolutions each halved by 2x2 pooling, then linear layers.

    Args:
        input: channels, height and width of one picture.
        conv_blocks: the output channels of each block, or a count: 32, 64, 128, …
        fc_blocks: the width of each linear layer before the last, or a count: 128 each.
        classes: the size of the output.
        layers: a namespace with the classes of fastconv.nn.

    Raises:
        ValueError: the picture is too small to be halved that often.
    """
    widths = [32 << i for i in range(conv_blocks)] if isinstance(conv_blocks, int) else conv_blocks
    hidden = [128] * fc_blocks if isinstance(fc_blocks, int) else fc_blocks
    channels, height, width = input
    if min(height, width) >> len(widths) == 0:
        raise ValueError(
            f"input of {height}x{width} pixels is too small for {len(widths)} conv_blocks, "
            f"each of which halves it; at least {1 << len(widths)} are needed"
        )
    modules: list[nn.Module] = []
    for out_channels in widths:
        modules += [
            layers.Conv2d(channels, out_channels, 3, padding=1, activation="relu"),
            layers.MaxPool2d(2),
        ]
        channels, height, width = out_channels, height // 2, width // 2
    modules.append(nn.Flatten())
    features = channels * height * width
    for out_features in hidden:
        modules += [layers.Linear(features, out_features), nn.ReLU()]
        features = out_features
    modules.append(layers.Linear(features, classes))
    model = nn.Sequential(*modules)
    for module in model[:-1]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model
