"""Networks of convolutions, in flax.nnx, a family a file.

`create("resnet50", num_classes=10, rngs=nnx.Rngs(0))` builds one by name, `list_models()` tells the names, and the
classes are here for what has none. All are channels last, take any number of batch axes, and pad as the reference
implementations do (torchvision's, unless an option says otherwise), so that weights from there give the same outputs.

`model(x)` is the output; `model.features(x)` a dict of the outputs of all named stages, of which it is the last. New
networks are in training mode: `model.eval()` turns dropout off and takes the batch norms' running statistics.

What all constructors take is told in `convjax.models.blocks`: `num_classes`, `in_channels`, `dtype`, `param_dtype`,
`layers`, `rngs`. Parameter counts and sources: docs/models.md.
"""

from convjax.models.blocks import Network
from convjax.models.convnext import ConvNeXt
from convjax.models.dcgan import DCGANDiscriminator, DCGANGenerator
from convjax.models.lenet import LeNet5
from convjax.models.mobilenet import MobileNetV2
from convjax.models.registry import create, list_models, parameter_count
from convjax.models.resnet import ResNet
from convjax.models.textcnn import TextCNN
from convjax.models.unet import UNet
from convjax.models.vgg import VGG
from convjax.models.wavenet import WaveNet, WaveNetCache, mu_law_decode, mu_law_encode

__all__ = [
    "VGG",
    "ConvNeXt",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "LeNet5",
    "MobileNetV2",
    "Network",
    "ResNet",
    "TextCNN",
    "UNet",
    "WaveNet",
    "WaveNetCache",
    "create",
    "list_models",
    "mu_law_decode",
    "mu_law_encode",
    "parameter_count",
]
