"""The networks: torchvision's state_dicts, and results equal to the torch.nn twin's in float64."""

import copy
import inspect
import pickle

import pytest
import torch

import fastconv.nn as fnn
from fastconv import models
from fastconv.models.googlenet import Inception, _transform_input
from fastconv.models.resnet import BasicBlock, Bottleneck, ResNet
from fastconv.testing import torch_layers


def on_meta(name, **options):
    with torch.device("meta"):
        return models.NETWORKS[name](**options)


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


COUNTS = [
    ("lenet", {}, 61_706),
    ("alexnet", {}, 61_100_840),
    ("vgg11", {}, 132_863_336),
    ("vgg11_bn", {}, 132_868_840),
    ("vgg13", {}, 133_047_848),
    ("vgg13_bn", {}, 133_053_736),
    ("vgg16", {}, 138_357_544),
    ("vgg16_bn", {}, 138_365_992),
    ("vgg19", {}, 143_667_240),
    ("vgg19_bn", {}, 143_678_248),
    ("nin", {}, 7_439_608),
    ("googlenet", {"variant": "torchvision", "aux_logits": False}, 6_624_904),
    ("googlenet", {"variant": "torchvision"}, 13_004_888),
    # The 16 more weights of each 5x5 kernel: 16 * sum of ch5x5red * ch5x5 over the nine blocks.
    ("googlenet", {"aux_logits": False}, 6_624_904 + 16 * 23_808),
    ("googlenet", {}, 13_004_888 + 16 * 23_808),
    ("resnet18", {}, 11_689_512),
    ("resnet34", {}, 21_797_672),
    ("resnet50", {}, 25_557_032),
    ("resnet101", {}, 44_549_160),
    ("resnet152", {}, 60_192_808),
    # ResNeXt-50 32x4d and Wide ResNet-50-2.
    ("resnet50", {"groups": 32, "width_per_group": 4}, 25_028_904),
    ("resnet50", {"width_per_group": 128}, 68_883_240),
    # 3x3x3x32 + 32, 3x3x32x64 + 64, 4096x128 + 128, 128x10 + 10.
    ("classic_cnn", {}, 545_098),
]


@pytest.mark.parametrize(("name", "options", "count"), COUNTS)
def test_parameter_counts(name, options, count):
    assert sum(p.numel() for p in on_meta(name, **options).parameters()) == count


@pytest.mark.parametrize("name", models.NETWORKS)
def test_state_dict_of_the_twin(name):
    ours, twin = on_meta(name), on_meta(name, layers=torch_layers)
    assert list(shapes(ours).items()) == list(shapes(twin).items())
    assert {type(m).__module__ for m in ours.modules() if isinstance(m, torch.nn.Conv2d)} == {
        "fastconv.nn"
    }
    assert not any(type(m).__module__ == "fastconv.nn" for m in twin.modules())


def weight_and_bias(*layers):
    return [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def norm(name):
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{part}" for part in parts]


def test_keys_of_the_plain_networks():
    assert list(shapes(on_meta("lenet"))) == weight_and_bias(0, 3, 7, 9, 11)
    classifier = [f"classifier.{i}" for i in (1, 4, 6)]
    features = [f"features.{i}" for i in (0, 3, 6, 8, 10)]
    assert list(shapes(on_meta("alexnet"))) == weight_and_bias(*features, *classifier)
    classifier = [f"classifier.{i}" for i in (0, 3, 6)]
    features = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
    assert list(shapes(on_meta("vgg16"))) == weight_and_bias(*features, *classifier)
    keys = []
    for i in (0, 4, 8, 11, 15, 18, 22, 25):
        keys += weight_and_bias(f"features.{i}") + norm(f"features.{i + 1}")
    assert list(shapes(on_meta("vgg11_bn"))) == keys + weight_and_bias(*classifier)


@pytest.mark.parametrize(
    ("name", "depths", "convs", "shortcuts"),
    [("resnet18", (2, 2, 2, 2), 2, (2, 3, 4)), ("resnet50", (3, 4, 6, 3), 3, (1, 2, 3, 4))],
)
def test_keys_of_resnet(name, depths, convs, shortcuts):
    keys = ["conv1.weight", *norm("bn1")]
    for stage, depth in enumerate(depths, 1):
        for i in range(depth):
            block = f"layer{stage}.{i}"
            for j in range(1, convs + 1):
                keys += [f"{block}.conv{j}.weight", *norm(f"{block}.bn{j}")]
            if i == 0 and stage in shortcuts:
                keys += [f"{block}.downsample.0.weight", *norm(f"{block}.downsample.1")]
    found = shapes(on_meta(name))
    assert list(found) == [*keys, "fc.weight", "fc.bias"]
    assert found["layer2.0.downsample.0.weight"][2:] == (1, 1)


@pytest.mark.parametrize(("variant", "size"), [("paper", 5), ("torchvision", 3)])
def test_keys_of_googlenet(variant, size):
    def basic(name):
        return [f"{name}.conv.weight", *norm(f"{name}.bn")]

    keys = basic("conv1") + basic("conv2") + basic("conv3")
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        for path in ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1"):
            keys += basic(f"inception{block}.{path}")
    for head in ("aux1", "aux2"):
        keys += basic(f"{head}.conv") + weight_and_bias(f"{head}.fc1", f"{head}.fc2")
    found = shapes(on_meta("googlenet", variant=variant))
    assert list(found) == [*keys, "fc.weight", "fc.bias"]
    assert found["inception4e.branch3.1.conv.weight"] == (128, 32, size, size)
    assert found["aux2.fc1.weight"] == (1024, 2048)


def test_torchvisions_constructors():
    def parameters(callable_):
        skip = ("variant", "namespace")
        return [
            (p.name, p.default)
            for p in inspect.signature(callable_).parameters.values()
            if p.name not in skip
        ]

    required = inspect.Parameter.empty
    assert parameters(models.AlexNet) == [("num_classes", 1000), ("dropout", 0.5)]
    assert parameters(models.VGG) == [
        ("features", required),
        ("num_classes", 1000),
        ("init_weights", True),
        ("dropout", 0.5),
    ]
    assert parameters(models.GoogLeNet) == [
        ("num_classes", 1000),
        ("aux_logits", True),
        ("transform_input", False),
        ("init_weights", None),
        ("dropout", 0.2),
        ("dropout_aux", 0.7),
    ]
    assert parameters(models.ResNet) == [
        ("block", required),
        ("layers", required),
        ("num_classes", 1000),
        ("zero_init_residual", False),
        ("groups", 1),
        ("width_per_group", 64),
        ("replace_stride_with_dilation", None),
        ("norm_layer", None),
    ]


# Networks small enough to run: name, builder, shape of the input. VGG's and AlexNet's linear
# layers are left out, they are torch's own.
def tiny_resnet(block, layers, **options):
    return ResNet(block, [1, 1, 1, 1], num_classes=5, namespace=layers, **options)


RUNS = {
    "lenet": (lambda o: models.lenet(layers=o), (3, 1, 28, 28)),
    "alexnet": (lambda o: models.AlexNet(2, namespace=o).features, (1, 3, 79, 95)),
    "vgg11": (lambda o: features_of("vgg11", o), (1, 3, 32, 48)),
    "vgg11_bn": (lambda o: features_of("vgg11_bn", o), (2, 3, 32, 48)),
    "nin": (lambda o: models.nin(7, layers=o), (1, 3, 67, 83)),
    "googlenet": (lambda o: googlenet(o), (2, 3, 33, 48)),
    "googlenet torchvision": (lambda o: googlenet(o, variant="torchvision"), (2, 3, 33, 48)),
    "resnet basic": (lambda o: tiny_resnet(BasicBlock, o), (2, 3, 33, 48)),
    "resnet bottleneck": (
        lambda o: tiny_resnet(
            Bottleneck,
            o,
            groups=4,
            width_per_group=16,
            replace_stride_with_dilation=[False, True, True],
        ),
        (2, 3, 33, 48),
    ),
    "classic": (
        lambda o: models.classic_cnn((2, 13, 19), (4, 6), (9,), 5, layers=o),
        (2, 2, 13, 19),
    ),
}


def features_of(name, layers):
    with torch.device("meta"):
        features = models.NETWORKS[name](layers=layers).features
    features.to_empty(device="cpu")
    for module in features:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return features


def googlenet(layers, **options):
    return models.googlenet(
        num_classes=5, init_weights=False, transform_input=True, layers=layers, **options
    )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", RUNS)
def test_equals_the_twin(name, training):
    build, shape = RUNS[name]
    torch.manual_seed(1)
    ours = build(fnn).double().train(training)
    twin = build(torch_layers).double().train(training)
    twin.load_state_dict(ours.state_dict())
    ours.load_state_dict(twin.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    results = []
    for model in (ours, twin):
        torch.manual_seed(2)  # dropout
        output = model(x)
        output = output if isinstance(output, tuple) else (output,)
        sum(y.square().mean() for y in output).backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append((output, gradients, model.state_dict()))
    assert len(results[0][0]) == (3 if training and name.startswith("googlenet") else 1)
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)


def test_dropout_is_active_in_training_only():
    model = models.nin(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.abs_()  # so that no ReLU hides the dropout
    x = torch.rand(1, 3, 67, 83)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    for name, p in (("alexnet", 0.25), ("vgg11", 0.25), ("googlenet", 0.25), ("nin", 0.25)):
        rates = {m.p for m in on_meta(name, dropout=p).modules() if isinstance(m, torch.nn.Dropout)}
        assert p in rates, name


def test_googlenet_outputs():
    with torch.device("meta"):
        x = torch.empty(2, 3, 224, 224)
        model = models.googlenet(num_classes=11, layers=torch_layers)
        output = model(x)
        assert output._fields == ("logits", "aux_logits2", "aux_logits1")
        assert [tuple(y.shape) for y in output] == [(2, 11)] * 3
        assert model.eval()(x).shape == (2, 11)
        plain = models.googlenet(aux_logits=False, layers=torch_layers)
        assert plain(x).shape == (2, 1000) and plain.aux1 is None
        with pytest.raises(ValueError, match="variant.*'other'"):
            models.googlenet(variant="other")


def test_each_auxiliary_head_has_its_place():
    model = googlenet(torch_layers)
    for value, head in enumerate((model.fc, model.aux2.fc2, model.aux1.fc2)):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, value)
    for value, output in enumerate(model(torch.randn(2, 3, 33, 48))):
        assert (output == value).all()
    assert all(m.eps == 0.001 for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_transform_input_changes_the_normalisation():
    picture = torch.rand(1, 3, 5, 4, dtype=torch.float64)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    actual = _transform_input((picture - mean) / std)
    torch.testing.assert_close(actual, (picture - 0.5) / 0.5, rtol=1e-12, atol=1e-12)


def test_an_inception_block_is_its_four_paths():
    block = Inception(6, 2, 3, 4, 2, 5, 3).double().eval()
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    paths = [block.branch1(x), block.branch2(x), block.branch3(x), block.branch4(x)]
    assert [path.shape[1] for path in paths] == [2, 4, 5, 3]
    assert torch.equal(block(x), torch.cat(paths, 1))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_zero_init_residual_makes_a_block_the_identity(block):
    model = tiny_resnet(block, torch_layers, zero_init_residual=True)
    inner = [m for m in model.modules() if isinstance(m, block)][-1]
    inner = block(inner.conv1.in_channels, inner.conv1.in_channels // block.expansion)
    last = inner.bn3 if block is Bottleneck else inner.bn2
    torch.nn.init.zeros_(last.weight)
    x = torch.randn(1, inner.conv1.in_channels, 4, 3)
    assert torch.equal(inner(x), x.relu())
    lasts = [m.bn3 if block is Bottleneck else m.bn2 for m in model.modules() if type(m) is block]
    assert len(lasts) == 4 and not any(norm.weight.any() for norm in lasts)
    assert all(m.bn1.weight.all() for m in model.modules() if type(m) is block)


def test_resnet_options():
    norm = torch.nn.InstanceNorm2d
    model = on_meta("resnet18", norm_layer=norm)
    assert isinstance(model.layer1[0].bn2, norm)
    dilated = on_meta("resnet50", replace_stride_with_dilation=[False, True, True])
    convs = [dilated.layer4[i].conv2 for i in range(3)]
    assert [conv.dilation for conv in convs] == [(2, 2), (4, 4), (4, 4)]
    assert [conv.stride for conv in convs] == [(1, 1)] * 3
    with pytest.raises(ValueError, match="replace_stride_with_dilation"):
        on_meta("resnet50", replace_stride_with_dilation=[True])
    with pytest.raises(ValueError, match="groups=1"):
        on_meta("resnet18", groups=2)
    with pytest.raises(NotImplementedError, match="dilation"):
        on_meta("resnet18", replace_stride_with_dilation=[False, False, True])


def test_classic_cnn_follows_its_pattern():
    model = models.classic_cnn((3, 32, 48), conv_blocks=3, fc_blocks=2, classes=4)
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["Conv2d", "MaxPool2d"] * 3 + ["Flatten"] + ["Linear", "ReLU"] * 2 + ["Linear"]
    assert model[0].activation == "relu"
    assert model(torch.randn(2, 3, 32, 48)).shape == (2, 4)
    with pytest.raises(ValueError, match="3x9 pixels is too small for 2"):
        models.classic_cnn((1, 3, 9), 2)


def test_nin_has_no_linear_layer():
    assert not any(isinstance(m, torch.nn.Linear) for m in on_meta("nin").modules())


def test_weights_are_never_downloaded():
    with torch.device("meta"):
        assert isinstance(models.alexnet(weights=None, progress=False), models.AlexNet)
    with pytest.raises(ValueError, match="DEFAULT.*load_state_dict"):
        models.resnet18(weights="DEFAULT")


def test_names_and_sizes():
    assert set(models.SIX) <= set(models.NETWORKS)
    assert models.input_size("lenet") == (1, 28, 28)
    assert models.input_size("resnet18") == (3, 224, 224)
    with pytest.raises(ValueError, match="densenet"):
        models.input_size("densenet")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", ["lenet", "resnet basic", "classic"])
def test_copies(name, clone):
    build, shape = RUNS[name]
    model = build(fnn).eval()
    x = torch.randn(shape)
    assert torch.equal(clone(model)(x), model(x))


def test_initial_weights():
    def spread(weight):
        return weight.detach().std().item()

    lenet = models.lenet()
    bound = (6 / (400 + 120)) ** 0.5  # Xavier's
    assert 0.95 * bound < lenet[7].weight.abs().max() <= bound
    assert not lenet[7].bias.any()
    resnet = tiny_resnet(BasicBlock, torch_layers)
    assert spread(resnet.conv1.weight) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    classic = models.classic_cnn((64, 8, 8), (64,))
    assert spread(classic[0].weight) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    vgg = models.VGG(torch.nn.Sequential(fnn.Conv2d(64, 32, 3)), 16)
    assert spread(vgg.features[0].weight) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    assert spread(vgg.classifier[6].weight) == pytest.approx(0.01, rel=0.02)
    assert not vgg.features[0].bias.any() and not vgg.classifier[0].bias.any()
    google = models.googlenet(num_classes=5, aux_logits=False)
    assert spread(google.inception4e.branch2[1].conv.weight) == pytest.approx(0.01, rel=0.02)
