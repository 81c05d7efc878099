"""The one table of every distinct convolution layer of the networks, read by tests and benches.

Measured at the networks' own input sizes (1x28x28 for lenet, 3x224x224 for the others), auxiliary
heads of GoogLeNet included. VGG 11, 13 and 19 have no layer that is not VGG 16's; "googlenet" is
the paper's variant. tests/test_layers_table.py traces the models and fails when a row, a size or a
multiplicity differs from theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..ops.sizes import conv_padding, conv_shape, pair


@dataclass(frozen=True)
class Layer:
    """(N, C, H, W) * (K, C / groups, R, S) -> (N, K, P, Q); stride, padding, dilation in both axes.

    `networks` says how often each network has the layer.
    """

    networks: Mapping[str, int] = field(hash=False)
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int
    padding: int
    dilation: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        """Such as "alexnet 11x11/4 3->64 @224": first network, kernel/stride, channels, width.

        Followed by groups and dilation, where they are not 1.
        """
        stride = f"/{self.stride}" if self.stride > 1 else ""
        network = next(iter(self.networks))
        name = f"{network} {self.R}x{self.S}{stride} {self.C}->{self.K} @{self.W}"
        name += f" groups {self.groups}" if self.groups > 1 else ""
        return name + (f" dilation {self.dilation}" if self.dilation > 1 else "")

    def sizes(self, batch: int) -> tuple[list[int], list[int], list[int]]:
        """Those of input, weight and output."""
        x = [batch, self.C, self.H, self.W]
        w = [self.K, self.C // self.groups, self.R, self.S]
        stride, dilation = pair(self.stride, "stride"), pair(self.dilation, "dilation")
        pads = conv_padding(self.padding, (self.R, self.S), stride, dilation)
        return x, w, conv_shape(x, w, (*stride, *pads, *dilation, self.groups))


def _googlenets(count: int, **others: int) -> dict[str, int]:
    """A layer that both variants of GoogLeNet have `count` times."""
    return {"googlenet": count, "googlenet_torchvision": count, **others}


# fmt: off
LAYERS: tuple[Layer, ...] = (
    #     networks and multiplicity; C, H, W, K, R, S, stride, padding
    Layer({"lenet": 1}, 1, 28, 28, 6, 5, 5, 1, 2),
    Layer({"lenet": 1}, 6, 14, 14, 16, 5, 5, 1, 0),
    Layer({"alexnet": 1}, 3, 224, 224, 64, 11, 11, 4, 2),
    Layer({"alexnet": 1}, 64, 27, 27, 192, 5, 5, 1, 2),
    Layer({"alexnet": 1}, 192, 13, 13, 384, 3, 3, 1, 1),
    Layer({"alexnet": 1}, 384, 13, 13, 256, 3, 3, 1, 1),
    Layer({"alexnet": 1}, 256, 13, 13, 256, 3, 3, 1, 1),
    Layer({"vgg16": 1}, 3, 224, 224, 64, 3, 3, 1, 1),
    Layer({"vgg16": 1}, 64, 224, 224, 64, 3, 3, 1, 1),
    Layer({"vgg16": 1}, 64, 112, 112, 128, 3, 3, 1, 1),
    Layer({"vgg16": 1}, 128, 112, 112, 128, 3, 3, 1, 1),
    Layer({"vgg16": 1}, 128, 56, 56, 256, 3, 3, 1, 1),
    Layer({"vgg16": 2}, 256, 56, 56, 256, 3, 3, 1, 1),
    Layer({"vgg16": 1}, 256, 28, 28, 512, 3, 3, 1, 1),
    Layer({"vgg16": 2}, 512, 28, 28, 512, 3, 3, 1, 1),
    Layer({"vgg16": 3}, 512, 14, 14, 512, 3, 3, 1, 1),
    Layer({"nin": 1}, 3, 224, 224, 96, 11, 11, 4, 0),
    Layer({"nin": 2}, 96, 54, 54, 96, 1, 1, 1, 0),
    Layer({"nin": 1}, 96, 26, 26, 256, 5, 5, 1, 2),
    Layer({"nin": 2}, 256, 26, 26, 256, 1, 1, 1, 0),
    Layer({"nin": 1}, 256, 12, 12, 384, 3, 3, 1, 1),
    Layer({"nin": 2}, 384, 12, 12, 384, 1, 1, 1, 0),
    Layer({"nin": 1}, 384, 5, 5, 1000, 3, 3, 1, 1),
    Layer({"nin": 2}, 1000, 5, 5, 1000, 1, 1, 1, 0),
    Layer(_googlenets(1, resnet18=1, resnet50=1), 3, 224, 224, 64, 7, 7, 2, 3),
    Layer(_googlenets(1, resnet50=1), 64, 56, 56, 64, 1, 1, 1, 0),
    Layer(_googlenets(1), 64, 56, 56, 192, 3, 3, 1, 1),
    Layer(_googlenets(1), 192, 28, 28, 64, 1, 1, 1, 0),
    Layer(_googlenets(1), 192, 28, 28, 96, 1, 1, 1, 0),
    Layer(_googlenets(1), 96, 28, 28, 128, 3, 3, 1, 1),
    Layer(_googlenets(1), 192, 28, 28, 16, 1, 1, 1, 0),
    Layer({"googlenet": 1}, 16, 28, 28, 32, 5, 5, 1, 2),
    Layer(_googlenets(1), 192, 28, 28, 32, 1, 1, 1, 0),
    Layer(_googlenets(2), 256, 28, 28, 128, 1, 1, 1, 0),
    Layer(_googlenets(1), 128, 28, 28, 192, 3, 3, 1, 1),
    Layer(_googlenets(1), 256, 28, 28, 32, 1, 1, 1, 0),
    Layer({"googlenet": 1}, 32, 28, 28, 96, 5, 5, 1, 2),
    Layer(_googlenets(1), 256, 28, 28, 64, 1, 1, 1, 0),
    Layer(_googlenets(1), 480, 14, 14, 192, 1, 1, 1, 0),
    Layer(_googlenets(1), 480, 14, 14, 96, 1, 1, 1, 0),
    Layer(_googlenets(1), 96, 14, 14, 208, 3, 3, 1, 1),
    Layer(_googlenets(1), 480, 14, 14, 16, 1, 1, 1, 0),
    Layer({"googlenet": 1}, 16, 14, 14, 48, 5, 5, 1, 2),
    Layer(_googlenets(1), 480, 14, 14, 64, 1, 1, 1, 0),
    Layer(_googlenets(1), 512, 4, 4, 128, 1, 1, 1, 0),
    Layer(_googlenets(1), 512, 14, 14, 160, 1, 1, 1, 0),
    Layer(_googlenets(2), 512, 14, 14, 112, 1, 1, 1, 0),
    Layer(_googlenets(1), 112, 14, 14, 224, 3, 3, 1, 1),
    Layer(_googlenets(2), 512, 14, 14, 24, 1, 1, 1, 0),
    Layer({"googlenet": 2}, 24, 14, 14, 64, 5, 5, 1, 2),
    Layer(_googlenets(3), 512, 14, 14, 64, 1, 1, 1, 0),
    Layer(_googlenets(2), 512, 14, 14, 128, 1, 1, 1, 0),
    Layer(_googlenets(1), 128, 14, 14, 256, 3, 3, 1, 1),
    Layer(_googlenets(1), 512, 14, 14, 144, 1, 1, 1, 0),
    Layer(_googlenets(1), 144, 14, 14, 288, 3, 3, 1, 1),
    Layer(_googlenets(1), 512, 14, 14, 32, 1, 1, 1, 0),
    Layer({"googlenet": 1}, 32, 14, 14, 64, 5, 5, 1, 2),
    Layer(_googlenets(1), 528, 4, 4, 128, 1, 1, 1, 0),
    Layer(_googlenets(1), 528, 14, 14, 256, 1, 1, 1, 0),
    Layer(_googlenets(1), 528, 14, 14, 160, 1, 1, 1, 0),
    Layer(_googlenets(1), 160, 14, 14, 320, 3, 3, 1, 1),
    Layer(_googlenets(1), 528, 14, 14, 32, 1, 1, 1, 0),
    Layer({"googlenet": 1}, 32, 14, 14, 128, 5, 5, 1, 2),
    Layer(_googlenets(1), 528, 14, 14, 128, 1, 1, 1, 0),
    Layer(_googlenets(1), 832, 7, 7, 256, 1, 1, 1, 0),
    Layer(_googlenets(1), 832, 7, 7, 160, 1, 1, 1, 0),
    Layer(_googlenets(1), 160, 7, 7, 320, 3, 3, 1, 1),
    Layer(_googlenets(1), 832, 7, 7, 32, 1, 1, 1, 0),
    Layer({"googlenet": 1}, 32, 7, 7, 128, 5, 5, 1, 2),
    Layer(_googlenets(2), 832, 7, 7, 128, 1, 1, 1, 0),
    Layer(_googlenets(1), 832, 7, 7, 384, 1, 1, 1, 0),
    Layer(_googlenets(1), 832, 7, 7, 192, 1, 1, 1, 0),
    Layer(_googlenets(1), 192, 7, 7, 384, 3, 3, 1, 1),
    Layer(_googlenets(1), 832, 7, 7, 48, 1, 1, 1, 0),
    Layer({"googlenet": 1}, 48, 7, 7, 128, 5, 5, 1, 2),
    Layer({"googlenet_torchvision": 1}, 16, 28, 28, 32, 3, 3, 1, 1),
    Layer({"googlenet_torchvision": 1}, 32, 28, 28, 96, 3, 3, 1, 1),
    Layer({"googlenet_torchvision": 1}, 16, 14, 14, 48, 3, 3, 1, 1),
    Layer({"googlenet_torchvision": 2}, 24, 14, 14, 64, 3, 3, 1, 1),
    Layer({"googlenet_torchvision": 1}, 32, 14, 14, 64, 3, 3, 1, 1),
    Layer({"googlenet_torchvision": 1}, 32, 14, 14, 128, 3, 3, 1, 1),
    Layer({"googlenet_torchvision": 1}, 32, 7, 7, 128, 3, 3, 1, 1),
    Layer({"googlenet_torchvision": 1}, 48, 7, 7, 128, 3, 3, 1, 1),
    Layer({"resnet18": 4, "resnet50": 3}, 64, 56, 56, 64, 3, 3, 1, 1),
    Layer({"resnet18": 1}, 64, 56, 56, 128, 1, 1, 2, 0),
    Layer({"resnet18": 1}, 64, 56, 56, 128, 3, 3, 2, 1),
    Layer({"resnet18": 3, "resnet50": 3}, 128, 28, 28, 128, 3, 3, 1, 1),
    Layer({"resnet18": 1}, 128, 28, 28, 256, 1, 1, 2, 0),
    Layer({"resnet18": 1}, 128, 28, 28, 256, 3, 3, 2, 1),
    Layer({"resnet18": 3, "resnet50": 5}, 256, 14, 14, 256, 3, 3, 1, 1),
    Layer({"resnet18": 1}, 256, 14, 14, 512, 1, 1, 2, 0),
    Layer({"resnet18": 1}, 256, 14, 14, 512, 3, 3, 2, 1),
    Layer({"resnet18": 3, "resnet50": 2}, 512, 7, 7, 512, 3, 3, 1, 1),
    Layer({"resnet50": 4}, 64, 56, 56, 256, 1, 1, 1, 0),
    Layer({"resnet50": 2}, 256, 56, 56, 64, 1, 1, 1, 0),
    Layer({"resnet50": 1}, 256, 56, 56, 512, 1, 1, 2, 0),
    Layer({"resnet50": 1}, 256, 56, 56, 128, 1, 1, 1, 0),
    Layer({"resnet50": 1}, 128, 56, 56, 128, 3, 3, 2, 1),
    Layer({"resnet50": 4}, 128, 28, 28, 512, 1, 1, 1, 0),
    Layer({"resnet50": 3}, 512, 28, 28, 128, 1, 1, 1, 0),
    Layer({"resnet50": 1}, 512, 28, 28, 1024, 1, 1, 2, 0),
    Layer({"resnet50": 1}, 512, 28, 28, 256, 1, 1, 1, 0),
    Layer({"resnet50": 1}, 256, 28, 28, 256, 3, 3, 2, 1),
    Layer({"resnet50": 6}, 256, 14, 14, 1024, 1, 1, 1, 0),
    Layer({"resnet50": 5}, 1024, 14, 14, 256, 1, 1, 1, 0),
    Layer({"resnet50": 1}, 1024, 14, 14, 2048, 1, 1, 2, 0),
    Layer({"resnet50": 1}, 1024, 14, 14, 512, 1, 1, 1, 0),
    Layer({"resnet50": 1}, 512, 14, 14, 512, 3, 3, 2, 1),
    Layer({"resnet50": 3}, 512, 7, 7, 2048, 1, 1, 1, 0),
    Layer({"resnet50": 2}, 2048, 7, 7, 512, 1, 1, 1, 0),
)
# fmt: on
