"""ResNet 18, 34, 50, 101 and 152. Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image
Recognition, 2015, table 1; grouped and dilated forms, stride in the 3x3 convolution and names as in
pytorch/vision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import nn as fastconv_nn
from ._builder import torchvision_signature


def _conv3x3(
    namespace, inputs: int, outputs: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Module:
    return namespace.Conv2d(
        inputs,
        outputs,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        groups=groups,
        bias=False,
        dilation=dilation,
    )


def _conv1x1(namespace, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return namespace.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """relu(bn2(conv3x3(relu(bn1(conv3x3(x))))) + shortcut), the sum and its ReLU in one op.

    (N, inplanes, H, W) -> (N, planes, H / stride, W / stride); `downsample` makes the shortcut
    where the two differ.

    Raises:
        ValueError: groups is not 1 or base_width is not 64.
        NotImplementedError: dilation is over 1.
    """

    expansion: int = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        namespace=fastconv_nn,
    ) -> None:
        super().__init__()
        if groups != 1 or base_width != 64:
            raise ValueError(
                f"BasicBlock takes groups=1 and base_width=64, got {groups} and {base_width}"
            )
        if dilation > 1:
            raise NotImplementedError(f"BasicBlock takes dilation=1, got {dilation}")
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = _conv3x3(namespace, inplanes, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(namespace, planes, planes)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.add = namespace.ResidualAdd("relu")
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.add(y, shortcut)


class Bottleneck(nn.Module):
    """relu(1x1 -> 3x3 -> 1x1, each with batch norm, + shortcut), the sum and its ReLU in one op.

    (N, inplanes, H, W) -> (N, 4 planes, H / stride, W / stride); `downsample` makes the shortcut
    where the two differ.
    """

    expansion: int = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        namespace=fastconv_nn,
    ) -> None:
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = _conv1x1(namespace, inplanes, width)
        self.bn1 = norm_layer(width)
        self.conv2 = _conv3x3(namespace, width, width, stride, groups, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = _conv1x1(namespace, width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.add = namespace.ResidualAdd("relu")
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.add(y, shortcut)


class ResNet(nn.Module):
    """Four stages of residual blocks: (N, 3, H, W), 224x224 -> (N, num_classes).

    Constructor and state_dict are torchvision's.

    Args:
        block: BasicBlock or Bottleneck.
        layers: the number of blocks in each of the four stages.
        zero_init_residual: start each block's last norm from zero, so that the block is relu(x).
        groups, width_per_group: of the blocks' 3x3 convolutions.
        replace_stride_with_dilation: for each of the last three stages.
        norm_layer: makes a norm from a number of channels; default torch.nn.BatchNorm2d.
        namespace: where the layer classes come from, such as fastconv.nn.

    Raises:
        ValueError: replace_stride_with_dilation has not three entries.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        namespace=fastconv_nn,
    ) -> None:
        super().__init__()
        dilate = replace_stride_with_dilation
        if dilate is None:
            dilate = (False, False, False)
        if len(dilate) != 3:
            raise ValueError(
                f"replace_stride_with_dilation must be None or have 3 entries, got {dilate}"
            )
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.inplanes = 64
        self.dilation = 1
        self.groups = groups
        self.base_width = width_per_group
        self.conv1 = namespace.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = self._norm_layer(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = namespace.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(namespace, block, 64, layers[0])
        self.layer2 = self._make_layer(namespace, block, 128, layers[1], 2, dilate[0])
        self.layer3 = self._make_layer(namespace, block, 256, layers[2], 2, dilate[1])
        self.layer4 = self._make_layer(namespace, block, 512, layers[3], 2, dilate[2])
        self.avgpool = namespace.AdaptiveAvgPool2d((1, 1))
        self.fc = namespace.Linear(512 * block.expansion, num_classes)
        self._init_weights(zero_init_residual)

    def _init_weights(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)
                elif isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)

    def _make_layer(
        self,
        namespace,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        previous_dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        outputs = planes * block.expansion
        downsample = None
        if stride != 1 or self.inplanes != outputs:
            downsample = nn.Sequential(
                _conv1x1(namespace, self.inplanes, outputs, stride),
                self._norm_layer(outputs),
            )

        def make(inputs, stride=1, downsample=None, dilation=self.dilation):
            return block(
                inputs,
                planes,
                stride,
                downsample,
                self.groups,
                self.base_width,
                dilation,
                self._norm_layer,
                namespace=namespace,
            )

        first = make(self.inplanes, stride, downsample, previous_dilation)
        self.inplanes = outputs
        return nn.Sequential(first, *(make(outputs) for _ in range(1, blocks)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@torchvision_signature
def resnet18(*, layers=fastconv_nn, **options) -> ResNet:
    """ResNet with 18 weight layers; `options` are ResNet's after `layers`."""
    return ResNet(BasicBlock, [2, 2, 2, 2], **options, namespace=layers)


@torchvision_signature
def resnet34(*, layers=fastconv_nn, **options) -> ResNet:
    """ResNet with 34 weight layers; `options` are ResNet's after `layers`."""
    return ResNet(BasicBlock, [3, 4, 6, 3], **options, namespace=layers)


@torchvision_signature
def resnet50(*, layers=fastconv_nn, **options) -> ResNet:
    """ResNet with 50 weight layers; `options` are ResNet's after `layers`."""
    return ResNet(Bottleneck, [3, 4, 6, 3], **options, namespace=layers)


@torchvision_signature
def resnet101(*, layers=fastconv_nn, **options) -> ResNet:
    """ResNet with 101 weight layers; `options` are ResNet's after `layers`."""
    return ResNet(Bottleneck, [3, 4, 23, 3], **options, namespace=layers)


@torchvision_signature
def resnet152(*, layers=fastconv_nn, **options) -> ResNet:
    """ResNet with 152 weight layers; `options` are ResNet's after `layers`."""
    return ResNet(Bottleneck, [3, 8, 36, 3], **options, namespace=layers)
