"""The layers that are measured: real ones, each with its source, in the canonical form that the tests use as well."""

from __future__ import annotations

import dataclasses

from convjax.testing import Case, case


@dataclasses.dataclass(frozen=True)
class Layer:
    """A case and where it comes from."""

    case: Case
    source: str

    @property
    def name(self) -> str:
        return self.case.name


def layer(source: str, name: str, *shapes: tuple[int, ...], **options) -> Layer:
    return Layer(case(name, *shapes, **options), source)


RESNET = "He et al., arXiv:1512.03385, table 1"
MOBILENET = "Howard et al., arXiv:1704.04861, table 1"

LAYERS: tuple[Layer, ...] = (
    layer(RESNET, "3x3 64->64 @56 N8", (8, 56, 56, 64), (3, 3, 64, 64), pads=1),
    layer(RESNET, "3x3 256->256 @14 N8", (8, 14, 14, 256), (3, 3, 256, 256), pads=1),
    layer(RESNET, "7x7/2 3->64 @224 N8", (8, 224, 224, 3), (7, 7, 3, 64), stride=2, pads=3),
    layer(RESNET, "1x1 64->256 @56 N8", (8, 56, 56, 64), (1, 1, 64, 256)),
    layer(
        "Xie et al., arXiv:1611.05431", "3x3 groups 32, 256 @28 N8", (8, 28, 28, 256), (3, 3, 8, 256), pads=1, groups=32
    ),
    layer(MOBILENET, "depthwise 3x3 128 @56 N8", (8, 56, 56, 128), (3, 3, 1, 128), pads=1, groups=128),
    layer(MOBILENET, "depthwise 3x3/2 128 @56 N8", (8, 56, 56, 128), (3, 3, 1, 128), stride=2, pads=1, groups=128),
    layer(
        "Liu et al., arXiv:2201.03545", "depthwise 7x7 192 @28 N8", (8, 28, 28, 192), (7, 7, 1, 192), pads=3, groups=192
    ),
    layer(
        "Ding et al., arXiv:2203.06717",
        "depthwise 31x31 128 @32 N1",
        (1, 32, 32, 128),
        (31, 31, 1, 128),
        pads=15,
        groups=128,
    ),
    layer(
        "Chen et al., arXiv:1706.05587",
        "3x3 dilation 12 256->64 @65 N1",
        (1, 65, 65, 256),
        (3, 3, 256, 64),
        pads=12,
        rhs_dilation=12,
    ),
    layer(
        "van den Oord et al., arXiv:1609.03499",
        "1-D k2 dilation 256 64->128 L16000",
        (1, 16000, 64),
        (2, 64, 128),
        pads=((256, 0),),
        rhs_dilation=256,
    ),
    layer(
        "Gu and Dao, arXiv:2312.00752",
        "1-D depthwise causal k4 512 L2048 N4",
        (4, 2048, 512),
        (4, 1, 512),
        pads=((3, 0),),
        groups=512,
    ),
    layer(
        "Radford et al., arXiv:1511.06434",
        "transposed 4x4/2 256->128 @16 N8",
        (8, 16, 16, 256),
        (4, 4, 256, 128),
        pads=2,
        lhs_dilation=2,
    ),
    layer(
        "Tran et al., arXiv:1412.0767", "3-D 3x3x3 64->64 @16x28x28 N1", (1, 16, 28, 28, 64), (3, 3, 3, 64, 64), pads=1
    ),
    layer(
        "Poli et al., arXiv:2302.10866",
        "1-D depthwise k1024 64 L16384 N1",
        (1, 16384, 64),
        (1024, 1, 64),
        pads=((1023, 0),),
        groups=64,
    ),
)
