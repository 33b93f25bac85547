"""What goes wrong with published weights, layout by layout, each with where it was reported or can be read.

Data only: the doctor shows the traps that a file can fall into, and the documentation lists all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TRAPS", "Trap", "traps_for"]

_B0_B7 = tuple(f"efficientnet_b{index}" for index in range(8))


@dataclass(frozen=True, kw_only=True)
class Trap:
    """A known way to lose accuracy, or time, with a kind of file.

    Attributes:
        name: A few words, for links and tests.
        text: One or two sentences: what happens, and what to do.
        source: Where it is reported, or the code that shows it.
        layouts: Names of the layouts that it concerns; empty for all.
        models: Our names of the networks; empty for all.
        record: A part of the name of the catalog's record, for traps of single files.
        entries: Whether it concerns training checkpoints with averaged and plain weights only.
    """

    name: str
    text: str
    source: str
    layouts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    record: str = ""
    entries: bool = False


def traps_for(
    layout: str, model: str, *, record: str | None = None, entries: Iterable[str] = ()
) -> tuple[Trap, ...]:
    """The traps that a file can fall into.

    Args:
        layout: Name of its layout.
        model: Our name of the network in it.
        record: Name of the catalog's record, where it is a published file.
        entries: ``"ema"`` and ``"plain"``, as far as a training checkpoint has them.

    Examples:
        >>> [trap.name for trap in traps_for("timm", "efficientnet_lite3")]
        ['timm: padding and epsilon', 'timm: conv_pw', 'timm: Lite3 and Lite4 sizes', 'preprocessing']
    """
    both = len(tuple(entries)) > 1
    return tuple(
        trap
        for trap in TRAPS
        if (not trap.layouts or layout in trap.layouts)
        and (not trap.models or model in trap.models)
        and (not trap.record or trap.record in (record or ""))
        and (both or not trap.entries)
    )


TRAPS = (
    Trap(
        name="timm: padding and epsilon",
        text="tf_efficientnet_* (same padding, epsilon 0.001) and efficientnet_* (symmetric, 0.00001) have "
        "the same names and shapes: a file loads into the wrong one without an error.",
        source="https://github.com/huggingface/pytorch-image-models/issues/248",
        layouts=("timm",),
    ),
    Trap(
        name="timm: conv_pw",
        text="In the first stage conv_pw is the projection, in all others the expansion. Renaming by pattern "
        "swaps them.",
        source="timm/models/_efficientnet_blocks.py, DepthwiseSeparableConv and InvertedResidual",
        layouts=("timm",),
    ),
    Trap(
        name="timm: Lite3 and Lite4 sizes",
        text="timm evaluates Lite3 at 300 and Lite4 at 380 px; the authors have 280 and 300 px.",
        source="timm/models/efficientnet.py, default_cfgs; github.com/tensorflow/tpu, "
        "models/official/efficientnet/lite/efficientnet_lite_builder.py",
        layouts=("timm",),
        models=("efficientnet_lite3", "efficientnet_lite4"),
    ),
    Trap(
        name="timm: AdvProp's normalisation",
        text="AdvProp's weights (ap) want mean 0.5 and std 0.5, not ImageNet's.",
        source="timm/models/efficientnet.py, default_cfgs",
        layouts=("timm",),
        record=".ap_",
    ),
    Trap(
        name="timm: L2 at 475 px",
        text="These weights of L2 are for 475 px; those without _475 in their name are for 800 px.",
        source="timm/models/efficientnet.py, default_cfgs",
        layouts=("timm",),
        record="_475",
    ),
    Trap(
        name="torchvision: crop and filter",
        text="Each network has a size, crop and filter of its own. With the same for all, up to 10 points of "
        "accuracy are lost.",
        source="https://github.com/pytorch/vision/issues/5958, https://github.com/pytorch/vision/issues/4936",
        layouts=("torchvision",),
    ),
    Trap(
        name="torchvision: two epsilons",
        text="B0 to B4 have batch norm epsilon 0.00001 and momentum 0.1, B5 to B7 have 0.001 and 0.01.",
        source="torchvision/models/efficientnet.py, efficientnet_b5 to efficientnet_b7",
        layouts=("torchvision",),
    ),
    Trap(
        name="torchvision: B5 to B7 were trained with same padding",
        text="They are ported from efficientnet_pytorch, which pads like TensorFlow, into a network that "
        "pads symmetrically; the accuracy that torchvision states is the latter's.",
        source="torchvision/models/efficientnet.py, EfficientNet_B5_Weights to EfficientNet_B7_Weights",
        layouts=("torchvision",),
        models=_B0_B7[5:],
    ),
    Trap(
        name="torchvision: checksums in names",
        text="Until October 2023 most file names had digits that are not of the file's checksum, and "
        "downloads ended with 'invalid hash value'. The files are whole.",
        source="https://github.com/pytorch/vision/issues/7744, "
        "https://github.com/pytorch/vision/issues/8060, https://github.com/pytorch/vision/pull/8036",
        layouts=("torchvision",),
    ),
    Trap(
        name="lukemelas: padding for one size",
        text="from_name() and from_pretrained() fix the padding for one image size, and run at others with "
        "it all the same. Give image_size, or image_size=None.",
        source="efficientnet_pytorch/utils.py, Conv2dStaticSamePadding; "
        "https://github.com/lukemelas/EfficientNet-PyTorch/issues/177",
        layouts=("lukemelas",),
    ),
    Trap(
        name="lukemelas: random stem",
        text="from_pretrained(in_channels=1) puts a random stem in place of the trained one.",
        source="https://github.com/lukemelas/EfficientNet-PyTorch/issues/330",
        layouts=("lukemelas",),
    ),
    Trap(
        name="lukemelas: AdvProp's normalisation",
        text="Files called adv-* (advprop=True) want mean 0.5 and std 0.5, not ImageNet's.",
        source="github.com/lukemelas/EfficientNet-PyTorch, examples/imagenet/main.py",
        layouts=("lukemelas",),
        models=(*_B0_B7, "efficientnet_b8"),
    ),
    Trap(
        name="lukemelas: crop",
        text="Its evaluation resizes to the network's size and cuts nothing off, the authors' cuts off a "
        "border; a user measured 84.4 against 83.8 % with B7.",
        source="https://github.com/lukemelas/EfficientNet-PyTorch/issues/100",
        layouts=("lukemelas",),
        models=_B0_B7,
    ),
    Trap(
        name="Lite: normalisation",
        text="The authors' Lite networks take (value - 127) / 128, not ImageNet's mean and std.",
        source="github.com/tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py",
        layouts=("lukemelas",),
        models=tuple(f"efficientnet_lite{index}" for index in range(5)),
    ),
    Trap(
        name="Keras: hidden rescaling",
        text="weights='imagenet' adds a layer that divides by √std, since the published files hold std in "
        "place of the variance. The same file in a network of weights=None gives other answers.",
        source="https://github.com/tensorflow/tensorflow/issues/49930, "
        "https://github.com/tensorflow/tensorflow/issues/62193",
        layouts=("keras",),
    ),
    Trap(
        name="Keras: values from 0 to 255",
        text="The network normalises by itself and preprocess_input does nothing; what was scaled before is "
        "scaled twice.",
        source="https://github.com/tensorflow/tensorflow/issues/48412",
        layouts=("keras",),
    ),
    Trap(
        name="Keras: padding for one size",
        text="Padding is fixed for input_shape when the network is built; without a size it is that of even "
        "sizes.",
        source="keras/src/applications/imagenet_utils.py, correct_pad",
        layouts=("keras",),
    ),
    Trap(
        name="transformers: momentum",
        text="batch_norm_momentum is 0.99 as in TensorFlow, which PyTorch calls 0.01: in training, "
        "statistics are almost those of the last batch. Norms after an expansion have 0.1.",
        source="transformers/models/efficientnet/configuration_efficientnet.py, modeling_efficientnet.py",
        layouts=("huggingface",),
    ),
    Trap(
        name="transformers: std twice",
        text="With include_top=True its image processor divides by std twice, as the published weights need "
        "it. Older versions resize with nearest where nothing else is said.",
        source="transformers/models/efficientnet/image_processing_efficientnet.py; "
        "https://github.com/huggingface/transformers/pull/42956",
        layouts=("huggingface",),
    ),
    Trap(
        name="transformers: padding for one size",
        text="depthwise_padding in the configuration lists the blocks that see an odd size, so the padding "
        "is right at one image size only.",
        source="transformers/models/efficientnet/modeling_efficientnet.py, correct_pad",
        layouts=("huggingface",),
    ),
    Trap(
        name="article: one size",
        text="The network of this layout's own code is built for one image size and refuses others.",
        source="github.com/abhuse/pytorch-efficientnet, efficientnet.py, SamePaddingConv2d.check_input",
        layouts=("article",),
    ),
    Trap(
        name="averaged or plain",
        text="The checkpoint holds averaged (EMA) and plain weights. With timm's decay the averaged ones are "
        "useless for the first 30 to 40 epochs; later they are the better ones.",
        source="https://github.com/huggingface/pytorch-image-models/issues/188",
        entries=True,
    ),
    Trap(
        name="preprocessing",
        text="A wrong size, crop, filter, mean or std is no error, only a loss: a user measured "
        "tf_efficientnet_b7 at 52 %, which is 84 % with its own.",
        source="https://github.com/rwightman/gen-efficientnet-pytorch/issues/54",
        layouts=("timm", "lukemelas", "torchvision", "article"),
    ),
)
