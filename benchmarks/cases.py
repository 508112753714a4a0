"""The layers that are measured: real ones, each with its source, in the canonical form that the tests use as well.

Names say kernel/stride, channels in->out, @size of the input, N batch. A width, length or clip that is cut to fit a
small machine is named in the source.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.layer import Layer
from convjax.testing import case


def layer(
    source: str,
    name: str,
    *shapes: tuple[int, ...],
    tags: str = "",
    dtype: str = "float32",
    layout: Any = "channels_last",
    vmap: Any = None,
    examples: int = 1,
    family: str = "",
    **options: Any,
) -> Layer:
    """One entry: the name, input `(N, *space, C)`, kernel `(*k, C / groups, O)`, and options as in `testing.case`."""
    return Layer(case(name, *shapes, **options), source, family, tuple(tags.split()), dtype, layout, vmap, examples)


def depthwise(source: str, name: str, lhs_shape: tuple[int, ...], k: int, **options: Any) -> Layer:
    """An entry with a kernel of `k` taps on each axis for every channel, "same" padding unless said."""
    channels, n = lhs_shape[-1], len(lhs_shape) - 2
    options = dict(pads=k // 2, groups=channels) | options
    return layer(source, name, lhs_shape, (*(k,) * n, 1, channels), **options)


def causal(source: str, name: str, length: int, channels: int, k: int, *, batch: int = 1, **options: Any) -> Layer:
    """A depthwise entry in one dimension that sees no future."""
    return depthwise(source, name, (batch, length, channels), k, pads=((k - 1, 0),), **options)


ANCHOR: dict[str, Any] = dict(tags="anchor")
BF16: dict[str, Any] = dict(tags="bf16", dtype="bfloat16")
NCHW: dict[str, Any] = dict(tags="nchw", layout="channels_first")

resnet = functools.partial(layer, "He et al., arXiv:1512.03385, table 1", family="ResNet")
resnext = functools.partial(layer, "Xie et al., arXiv:1611.05431, table 1", family="ResNeXt", pads=1, groups=32)
mobilenet1 = functools.partial(depthwise, "Howard et al., arXiv:1704.04861, table 1", family="MobileNet V1")
mobilenet2 = functools.partial(depthwise, "Sandler et al., arXiv:1801.04381, table 2", family="MobileNet V2")
efficientnet = functools.partial(depthwise, "Tan and Le, arXiv:1905.11946, table 1", family="EfficientNet")
convnext = functools.partial(depthwise, "Liu et al., arXiv:2201.03545, table 9", family="ConvNeXt")
replknet = functools.partial(depthwise, "Ding et al., arXiv:2203.06717, section 4.1", family="RepLKNet")
aspp = functools.partial(layer, "Chen et al., arXiv:1706.05587, section 3.3", family="DeepLab ASPP")
wavenet = functools.partial(layer, "van den Oord et al., arXiv:1609.03499, section 2.1", family="WaveNet")
textcnn = functools.partial(layer, "Kim, arXiv:1408.5882, section 3.1", family="TextCNN")
hyena = functools.partial(causal, "Poli et al., arXiv:2302.10866, section 3", family="Hyena")
mamba = functools.partial(causal, "Gu and Dao, arXiv:2312.00752, section 3.4", family="Mamba")
dcgan = functools.partial(layer, "Radford et al., arXiv:1511.06434, figure 1", family="DCGAN")
image = functools.partial(depthwise, "Gonzalez and Woods, Digital image processing, chapter 3", family="image filter")
fcn = functools.partial(layer, "Long et al., arXiv:1411.4038, section 4.2", family="FCN")
inception = functools.partial(layer, "Szegedy et al., arXiv:1512.00567, figure 6", family="Inception")
dpsgd = functools.partial(layer, "Abadi et al., arXiv:1607.00133, algorithm 1", family="per-example gradients")

LAYERS: tuple[Layer, ...] = (
    # dense, in two dimensions
    resnet("3x3 64->64 @56 N8", (8, 56, 56, 64), (3, 3, 64, 64), pads=1, **ANCHOR),
    resnet("3x3 128->128 @28 N8", (8, 28, 28, 128), (3, 3, 128, 128), pads=1),
    resnet("3x3 256->256 @14 N8", (8, 14, 14, 256), (3, 3, 256, 256), pads=1, **ANCHOR),
    resnet("3x3 512->512 @7 N8", (8, 7, 7, 512), (3, 3, 512, 512), pads=1),
    resnet("3x3/2 128->128 @56 N8", (8, 56, 56, 128), (3, 3, 128, 128), stride=2, pads=1),
    resnet("7x7/2 3->64 @224 N8", (8, 224, 224, 3), (7, 7, 3, 64), stride=2, pads=3, **ANCHOR),
    resnet("1x1 64->256 @56 N8", (8, 56, 56, 64), (1, 1, 64, 256), **ANCHOR),
    resnet("1x1 1024->256 @14 N8", (8, 14, 14, 1024), (1, 1, 1024, 256)),
    resnet("1x1/2 256->512 @56 N8", (8, 56, 56, 256), (1, 1, 256, 512), stride=2),
    resnet("3x3 64->64 @56 N1", (1, 56, 56, 64), (3, 3, 64, 64), pads=1),
    resnet("3x3 256->256 @14 N32", (32, 14, 14, 256), (3, 3, 256, 256), pads=1),
    resnet("7x7/2 3->64 @224 N1", (1, 224, 224, 3), (7, 7, 3, 64), stride=2, pads=3),
    resnet("3x3 64->64 @56 N8 NCHW", (8, 56, 56, 64), (3, 3, 64, 64), pads=1, **NCHW),
    resnet("1x1 64->256 @56 N8 NCHW", (8, 56, 56, 64), (1, 1, 64, 256), **NCHW),
    resnet("3x3 256->256 @14 N8 bf16", (8, 14, 14, 256), (3, 3, 256, 256), pads=1, **BF16),
    resnet("1x1 64->256 @56 N8 bf16", (8, 56, 56, 64), (1, 1, 64, 256), **BF16),
    inception("1x7 192->192 @17 N8", (8, 17, 17, 192), (1, 7, 192, 192), pads=((0, 0), (3, 3))),
    inception("7x1 192->192 @17 N8", (8, 17, 17, 192), (7, 1, 192, 192), pads=((3, 3), (0, 0))),
    aspp("3x3 dilation 6 256->64 @65 N1", (1, 65, 65, 256), (3, 3, 256, 64), pads=6, rhs_dilation=6),
    aspp("3x3 dilation 12 256->64 @65 N1", (1, 65, 65, 256), (3, 3, 256, 64), pads=12, rhs_dilation=12, **ANCHOR),
    aspp("3x3 dilation 18 2048->256 @33 N1", (1, 33, 33, 2048), (3, 3, 2048, 256), pads=18, rhs_dilation=18),
    # grouped
    resnext("3x3 groups 32, 128 @56 N8", (8, 56, 56, 128), (3, 3, 4, 128)),
    resnext("3x3 groups 32, 256 @28 N8", (8, 28, 28, 256), (3, 3, 8, 256), **ANCHOR),
    resnext("3x3 groups 32, 512 @14 N8", (8, 14, 14, 512), (3, 3, 16, 512)),
    resnext("3x3 groups 32, 1024 @7 N8", (8, 7, 7, 1024), (3, 3, 32, 1024)),
    # depthwise, in two dimensions
    mobilenet1("depthwise 3x3 32 @112 N8", (8, 112, 112, 32), 3),
    mobilenet1("depthwise 3x3 128 @56 N8", (8, 56, 56, 128), 3, **ANCHOR),
    mobilenet1("depthwise 3x3/2 128 @56 N8", (8, 56, 56, 128), 3, stride=2, **ANCHOR),
    mobilenet1("depthwise 3x3 128 @56 N1", (1, 56, 56, 128), 3),
    mobilenet1("depthwise 3x3 512 @14 N32", (32, 14, 14, 512), 3),
    mobilenet1("depthwise 3x3 128 @56 N8 NCHW", (8, 56, 56, 128), 3, **NCHW),
    mobilenet1("depthwise 3x3 128 @56 N8 bf16", (8, 56, 56, 128), 3, **BF16),
    mobilenet2("depthwise 3x3/2 96 @112 N8", (8, 112, 112, 96), 3, stride=2),
    mobilenet2("depthwise 3x3 192 @28 N8", (8, 28, 28, 192), 3),
    efficientnet("depthwise 5x5/2 144 @56 N8", (8, 56, 56, 144), 5, stride=2),
    efficientnet("depthwise 5x5 672 @14 N8", (8, 14, 14, 672), 5),
    convnext("depthwise 7x7 96 @56 N8", (8, 56, 56, 96), 7),
    convnext("depthwise 7x7 192 @28 N8", (8, 28, 28, 192), 7, **ANCHOR),
    convnext("depthwise 7x7 768 @7 N32", (32, 7, 7, 768), 7),
    replknet("depthwise 31x31 128 @32 N1", (1, 32, 32, 128), 31, **ANCHOR),
    replknet("depthwise 27x27 512 @14 N8", (8, 14, 14, 512), 27),
    depthwise(
        "a Gaussian of sigma 8.5 cut at 3 sigma; jax issue 32225",
        "blur 51x51 3 @512 N1",
        (1, 512, 512, 3),
        51,
        family="image blur",
    ),
    # one dimension
    wavenet("1-D k2 dilation 1 64->128 L16000", (1, 16000, 64), (2, 64, 128), pads=((1, 0),)),
    wavenet(
        "1-D k2 dilation 256 64->128 L16000",
        (1, 16000, 64),
        (2, 64, 128),
        pads=((256, 0),),
        rhs_dilation=256,
        **ANCHOR,
    ),
    wavenet("1-D k2 dilation 512 64->128 L16000", (1, 16000, 64), (2, 64, 128), pads=((512, 0),), rhs_dilation=512),
    textcnn("1-D k3 300->100 L56 N50", (50, 56, 300), (3, 300, 100)),
    textcnn("1-D k4 300->100 L56 N50", (50, 56, 300), (4, 300, 100)),
    textcnn("1-D k5 300->100 L56 N50", (50, 56, 300), (5, 300, 100)),
    mamba("1-D depthwise causal k4 512 L2048 N4", 2048, 512, 4, batch=4, **ANCHOR),
    mamba("1-D depthwise causal k4 1536 L2048 N1", 2048, 1536, 4),
    mamba("1-D depthwise causal k4 512 L2048 N4 NCW", 2048, 512, 4, batch=4, **NCHW),
    mamba("1-D depthwise causal k4 512 L2048 N4 bf16", 2048, 512, 4, batch=4, **BF16),
    hyena("1-D depthwise k1024 64 L16384 N1", 16384, 64, 1024, **ANCHOR),
    hyena("1-D depthwise k1K 768 L1K N1", 2**10, 768, 2**10),
    hyena("1-D depthwise k16K 64 L16K N1", 2**14, 64, 2**14),  # width cut from 768
    causal(
        "Nguyen et al., arXiv:2306.15794, section 3; width cut from 256",
        "1-D depthwise k128K 16 L128K N1",
        2**17,
        16,
        2**17,
        family="Hyena",
    ),
    causal(
        "Nguyen et al., arXiv:2306.15794, section 3; width cut from 256",
        "1-D depthwise k1M 4 L1M N1",
        2**20,
        4,
        2**20,
        family="Hyena",
    ),
    layer(
        "Gardner, Efficient convolution without input-output delay, J. Audio Eng. Soc. 43(3), 1995",
        "reverb 10 s of 48 kHz, response 10 s",
        (1, 480_000, 1),
        (480_000, 1, 1),
        pads=479_999,
        family="audio",
    ),
    layer(
        "jax issue 5227: scipy.signal.convolve of a long signal",
        "FIR 129 taps, 60 s of 48 kHz",
        (1, 2_880_000, 1),
        (129, 1, 1),
        pads=64,
        family="audio",
    ),
    # transposed
    dcgan("transposed 4x4/2 256->128 @16 N8", (8, 16, 16, 256), (4, 4, 256, 128), pads=2, lhs_dilation=2, **ANCHOR),
    dcgan(
        "transposed 5x5/2 1024->512 @4 N8", (8, 4, 4, 1024), (5, 5, 1024, 512), pads=((2, 3), (2, 3)), lhs_dilation=2
    ),
    fcn("transposed 16x16/8 21->21 @64 N1", (1, 64, 64, 21), (16, 16, 21, 21), pads=11, lhs_dilation=8),
    fcn("transposed 64x64/32 21->21 @16 N1", (1, 16, 16, 21), (64, 64, 21, 21), pads=47, lhs_dilation=32),
    fcn(
        "transposed depthwise 4x4/2 21 @64 N8",
        (8, 64, 64, 21),
        (4, 4, 1, 21),
        pads=2,
        lhs_dilation=2,
        groups=21,
    ),
    layer(
        "Cicek et al., arXiv:1606.06650, figure 2",
        "3-D transposed 2x2x2/2 256->256 @16 N1",
        (1, 16, 16, 16, 256),
        (2, 2, 2, 256, 256),
        pads=1,
        lhs_dilation=2,
        family="3-D transposed",
    ),
    layer(
        "Wu et al., arXiv:1610.07584, section 3.1",
        "3-D transposed 4x4x4/2 256->128 @8 N1",
        (1, 8, 8, 8, 256),
        (4, 4, 4, 256, 128),
        pads=2,
        lhs_dilation=2,
        family="3-D transposed",
    ),
    # three dimensions
    layer(
        "Tran et al., arXiv:1412.0767, figure 3",
        "3-D 3x3x3 64->64 @16x28x28 N1",
        (1, 16, 28, 28, 64),
        (3, 3, 3, 64, 64),
        pads=1,
        family="C3D",
        **ANCHOR,
    ),
    layer(
        "Tran et al., arXiv:1412.0767, figure 3",
        "3-D 3x3x3 3->64 @16x112x112 N1",
        (1, 16, 112, 112, 3),
        (3, 3, 3, 3, 64),
        pads=1,
        family="C3D",
    ),
    layer(
        "Carreira and Zisserman, arXiv:1705.07750, figure 3; clip cut from 64 frames",
        "3-D 7x7x7/2 3->64 @16x224x224 N1",
        (1, 16, 224, 224, 3),
        (7, 7, 7, 3, 64),
        stride=2,
        pads=3,
        family="I3D",
    ),
    depthwise(
        "Feichtenhofer, arXiv:2004.04730, table 3",
        "3-D depthwise 3x3x3 54 @16x56x56 N1",
        (1, 16, 56, 56, 54),
        3,
        family="X3D",
    ),
    # mapped over examples
    dpsgd(
        "per-example gradients 3x3 64->64 @28 B16",
        (1, 28, 28, 64),
        (3, 3, 64, 64),
        pads=1,
        vmap="gradients",
        examples=16,
    ),
    dpsgd(
        "per-example gradients depthwise 3x3 128 @28 B16",
        (1, 28, 28, 128),
        (3, 3, 1, 128),
        pads=1,
        groups=128,
        vmap="gradients",
        examples=16,
    ),
    layer(
        "Karras et al., arXiv:1912.04958, section 2.2",
        "per-example kernels 3x3 256->256 @16 B4",
        (1, 16, 16, 256),
        (3, 3, 256, 256),
        pads=1,
        vmap="kernels",
        examples=4,
        family="per-example kernels",
    ),
    layer(
        "Yang et al., arXiv:1904.04971, section 3",
        "per-example kernels depthwise 3x3 128 @28 B8",
        (1, 28, 28, 128),
        (3, 3, 1, 128),
        pads=1,
        groups=128,
        vmap="kernels",
        examples=8,
        family="per-example kernels",
    ),
    dpsgd(
        "per-example gradients 3x3 64->64 @28 B32",
        (1, 28, 28, 64),
        (3, 3, 64, 64),
        pads=1,
        vmap="gradients",
        examples=32,
    ),
    dpsgd(
        "per-example gradients 3x3 256->256 @14 B32",
        (1, 14, 14, 256),
        (3, 3, 256, 256),
        pads=1,
        vmap="gradients",
        examples=32,
    ),
    # pictures: a filter for each of three colours, or one for a grey image; few channels, many pixels
    image("depthwise 3x3 3 @512 N1", (1, 512, 512, 3), 3),
    image("depthwise 5x5 3 @512 N1", (1, 512, 512, 3), 5),
    image("depthwise 11x11 3 @512 N1", (1, 512, 512, 3), 11),
    image("depthwise 3x3 1 @512 N1", (1, 512, 512, 1), 3),
    image("depthwise 9x9 1 @512 N1", (1, 512, 512, 1), 9),
    image("depthwise 3x3 1 @64 N32", (32, 64, 64, 1), 3),
    layer("LeCun et al., 1998, figure 2", "5x5 1->6 @28 N64", (64, 28, 28, 1), (5, 5, 1, 6), pads=2, family="LeNet"),
)

SUITES: dict[str, tuple[Layer, ...]] = {
    "all": LAYERS,
    "anchors": tuple(entry for entry in LAYERS if "anchor" in entry.tags),
}


def select(suite: str = "all", text: str = "") -> list[Layer]:
    """Layers of a suite whose name, family or tags hold `text`, whatever its case."""
    words = lambda entry: " ".join((entry.name, entry.family, *entry.tags)).lower()
    return [entry for entry in SUITES[suite] if text.lower() in words(entry)]


def by_name(name: str) -> Layer:
    """The layer of that name; KeyError where there is none."""
    return _BY_NAME[name]


_BY_NAME = {entry.name: entry for entry in LAYERS}
