"""Convolutions of networks that fastconv does not build, and that users bring.

Of each network the layers that differ in kind or size; 1x1 convolutions only where their channels
are few. Shapes are the papers' at the input size of their tables. `bench/layers.py --others`
measures them.
"""

from __future__ import annotations

from .layers import Layer


def _depthwise(network: str, C: int, size: int, taps: int, stride: int = 1) -> Layer:
    return Layer({network: 1}, C, size, size, C, taps, taps, stride, taps // 2, 1, C)


# fmt: off
OTHER_LAYERS: tuple[Layer, ...] = (
    #     network; C, H, W, K, R, S, stride, padding, dilation, groups
    # MobileNetV2
    *(_depthwise("mobilenetv2", *sizes) for sizes in (
        (32, 112, 3), (96, 112, 3, 2), (144, 56, 3), (144, 56, 3, 2), (192, 28, 3), (192, 28, 3, 2),
        (384, 14, 3), (576, 14, 3), (576, 14, 3, 2), (960, 7, 3),
    )),
    *(Layer({"mobilenetv2": 1}, c, size, size, k, 1, 1, 1, 0) for c, k, size in (
        (32, 16, 112), (16, 96, 112), (96, 24, 56), (24, 144, 56), (144, 32, 28), (192, 64, 14),
        (96, 576, 14), (576, 160, 7), (160, 960, 7), (320, 1280, 7),
    )),
    # EfficientNet-B0
    *(_depthwise("efficientnet_b0", *sizes) for sizes in (
        (144, 56, 5, 2), (240, 28, 5), (240, 28, 3, 2), (480, 14, 3), (480, 14, 5), (672, 14, 5),
        (672, 14, 5, 2), (1152, 7, 5), (1152, 7, 3),
    )),
    Layer({"efficientnet_b0": 1}, 1152, 1, 1, 48, 1, 1, 1, 0),
    Layer({"efficientnet_b0": 1}, 48, 1, 1, 1152, 1, 1, 1, 0),
    # ConvNeXt-T
    Layer({"convnext_tiny": 1}, 3, 224, 224, 96, 4, 4, 4, 0),
    *(_depthwise("convnext_tiny", c, size, 7) for c, size in (
        (96, 56), (192, 28), (384, 14), (768, 7),
    )),
    Layer({"convnext_tiny": 1}, 96, 56, 56, 192, 2, 2, 2, 0),
    Layer({"convnext_tiny": 1}, 384, 14, 14, 768, 2, 2, 2, 0),
    # ResNeXt-50 32x4d
    *(Layer({"resnext50": 1}, c, size, size, c, 3, 3, stride, 1, 1, 32) for c, size, stride in (
        (128, 56, 1), (256, 56, 2), (256, 28, 1), (512, 28, 2), (512, 14, 1), (1024, 14, 2),
        (1024, 7, 1),
    )),
    # RegNetY-400MF, groups of 8
    *(Layer({"regnety_400mf": 1}, c, size, size, c, 3, 3, 1, 1, 1, c // 8) for c, size in (
        (48, 56), (104, 28), (208, 14), (440, 7),
    )),
    # ShuffleNetV2 x1.0
    *(_depthwise("shufflenetv2", c, size, 3) for c, size in ((58, 28), (116, 14), (232, 7))),
    Layer({"shufflenetv2": 1}, 116, 14, 14, 116, 1, 1, 1, 0),
    # DenseNet-121
    *(Layer({"densenet121": 1}, 128, size, size, 32, 3, 3, 1, 1) for size in (56, 28, 14, 7)),
    # SqueezeNet 1.1
    Layer({"squeezenet": 1}, 128, 55, 55, 16, 1, 1, 1, 0),
    Layer({"squeezenet": 1}, 16, 55, 55, 64, 3, 3, 1, 1),
    Layer({"squeezenet": 1}, 64, 13, 13, 256, 3, 3, 1, 1),
    # Inception-v3
    Layer({"inception_v3": 1}, 32, 147, 147, 64, 3, 3, 1, 1),
    Layer({"inception_v3": 1}, 80, 73, 73, 192, 3, 3, 1, 0),
    Layer({"inception_v3": 1}, 48, 35, 35, 64, 5, 5, 1, 2),
    Layer({"inception_v3": 1}, 288, 35, 35, 384, 3, 3, 2, 0),
    # DeepLabv3, output stride 16: the last stage and its pyramid
    Layer({"deeplabv3": 1}, 512, 33, 33, 512, 3, 3, 1, 2, 2),
    *(Layer({"deeplabv3": 1}, 2048, 33, 33, 256, 3, 3, 1, d, d) for d in (6, 12, 18)),
    # U-Net and YOLO-like stages
    Layer({"unet": 1}, 1, 128, 128, 64, 3, 3, 1, 1),
    Layer({"unet": 1}, 64, 128, 128, 64, 3, 3, 1, 1),
    Layer({"unet": 1}, 128, 128, 128, 64, 3, 3, 1, 1),
    Layer({"unet": 1}, 64, 128, 128, 2, 1, 1, 1, 0),
    Layer({"yolo": 1}, 32, 160, 160, 64, 3, 3, 2, 1),
    Layer({"yolo": 1}, 32, 80, 80, 32, 3, 3, 1, 1),
    Layer({"yolo": 1}, 256, 40, 40, 512, 3, 3, 2, 1),
    Layer({"yolo": 1}, 255, 20, 20, 255, 1, 1, 1, 0),
    # SRCNN and EDSR
    Layer({"srcnn": 1}, 1, 96, 96, 64, 9, 9, 1, 4),
    Layer({"srcnn": 1}, 32, 96, 96, 1, 5, 5, 1, 2),
    Layer({"edsr": 1}, 64, 48, 48, 256, 3, 3, 1, 1),
    # Small images
    Layer({"cifar": 1}, 3, 32, 32, 16, 3, 3, 1, 1),
    Layer({"cifar": 1}, 16, 32, 32, 16, 3, 3, 1, 1),
    Layer({"cifar": 1}, 16, 32, 32, 32, 3, 3, 2, 1),
    Layer({"cifar": 1}, 64, 8, 8, 64, 3, 3, 1, 1),
    Layer({"mnist": 1}, 1, 28, 28, 32, 3, 3, 1, 1),
    Layer({"mnist": 1}, 32, 28, 28, 64, 3, 3, 1, 1),
)
