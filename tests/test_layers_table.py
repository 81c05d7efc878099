"""The table of layers against the networks themselves, traced on the meta device."""

import torch

from fastconv import models
from fastconv.testing import torch_layers
from fastconv.testing.layers import LAYERS
from fastconv.testing.other_layers import OTHER_LAYERS

# Each network of the table and how it is built.
NETWORKS = {
    "lenet": models.lenet,
    "alexnet": models.alexnet,
    "vgg16": models.vgg16,
    "nin": models.nin,
    "googlenet": models.googlenet,
    "googlenet_torchvision": lambda **o: models.googlenet(variant="torchvision", **o),
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
}


def sizes(layer):
    kernel = (layer.R, layer.S, layer.stride, layer.padding, layer.dilation, layer.groups)
    return (layer.C, layer.H, layer.W, layer.K, *kernel)


def trace(name, build):
    """{sizes: how often} of every convolution of one training forward."""
    found = {}

    def record(module, arguments, output):
        _, channels, height, width = arguments[0].shape
        geometry = []
        for value in (module.stride, module.padding, module.dilation):
            assert value[0] == value[1]
            geometry.append(value[0])
        key = (channels, height, width, module.out_channels, *module.kernel_size, *geometry)
        key += (module.groups,)
        found[key] = found.get(key, 0) + 1

    with torch.device("meta"):
        model = build(layers=torch_layers)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(record)
        model.train()(torch.empty(2, *models.input_size(name.split("_")[0])))
    return found


def test_the_table_is_the_networks():
    for name, build in NETWORKS.items():
        table = {sizes(layer): layer.networks[name] for layer in LAYERS if name in layer.networks}
        assert table == trace(name, build), name


def test_the_table_names_no_other_network():
    assert {name for layer in LAYERS for name in layer.networks} == set(NETWORKS)


def test_other_vggs_add_no_layer():
    known = {sizes(layer) for layer in LAYERS if "vgg16" in layer.networks}
    for name in ("vgg11", "vgg13", "vgg19"):
        assert trace(name, models.NETWORKS[name]).keys() <= known, name


def test_rows_and_names_are_distinct():
    layers = LAYERS + OTHER_LAYERS
    assert len({sizes(layer) for layer in layers}) == len(layers)
    assert len({layer.name for layer in layers}) == len(layers)
    assert "vgg16 3x3 64->128 @112" in {layer.name for layer in LAYERS}
