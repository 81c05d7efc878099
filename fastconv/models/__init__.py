"""Networks assembled from fastconv's layers. Every builder takes a keyword-only `layers`, a
namespace with the classes of fastconv.nn. No weights are downloaded."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .alexnet import AlexNet, alexnet
from .classic import classic_cnn
from .googlenet import GoogLeNet, GoogLeNetOutputs, googlenet
from .lenet import lenet
from .nin import nin
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from .vgg import VGG, vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn

NETWORKS: dict[str, Callable[..., torch.nn.Module]] = {
    builder.__name__: builder
    for builder in (
        lenet,
        alexnet,
        vgg11,
        vgg11_bn,
        vgg13,
        vgg13_bn,
        vgg16,
        vgg16_bn,
        vgg19,
        vgg19_bn,
        nin,
        googlenet,
        resnet18,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        classic_cnn,
    )
}

SIX = ("lenet", "alexnet", "vgg16", "nin", "googlenet", "resnet18")

_SMALL_INPUTS = {"lenet": (1, 28, 28), "classic_cnn": (3, 32, 32)}

__all__ = [
    "NETWORKS",
    "SIX",
    "AlexNet",
    "GoogLeNet",
    "GoogLeNetOutputs",
    "ResNet",
    "VGG",
    "input_size",
    *NETWORKS,
]


def input_size(name: str) -> tuple[int, int, int]:
    """(C, H, W) of one input of the network `name`, as its builder's defaults expect it.

    Raises:
        ValueError: no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, got {name!r}")
    return _SMALL_INPUTS.get(name, (3, 224, 224))
