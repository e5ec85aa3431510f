"""Residual networks for images, written with `tl.` alone.

The layers are those of Trax in the order of Trax, so that weights trained there fit here.
"""

from collections.abc import Callable, Sequence

from trax_torch import layers as tl

Maker = Callable[..., tl.Layer]


def Resnet50(
    d_hidden: int = 64,
    n_output_classes: int = 1001,
    mode: tl.Mode = "train",
    norm: Maker = tl.BatchNorm,
    non_linearity: Maker = tl.Relu,
) -> tl.Layer:
    """Returns a ResNet of 50 layers: images in, activations of classes out.

    It maps numbers of any type (batch, height, width, channels) to floats (batch,
    n_output_classes). Images are 224 pixels high and wide; up to 255 give the same sizes.

    Args:
      d_hidden: number of channels of the first convolution.
      n_output_classes: number of classes.
      mode: `'train'`, `'eval'` or `'predict'`.
      norm: makes a normalization, `norm(mode=mode)`.
      non_linearity: makes an activation.

    Source: Trax `models/resnet.py::Resnet50`; He et al. 2015, arXiv:1512.03385.
    """

    def stage(multiplier: int, strides: Sequence[int], n_blocks: int) -> list[tl.Layer]:
        filters = [multiplier * d_hidden, multiplier * d_hidden, 4 * multiplier * d_hidden]
        blocks = ConvBlock(3, filters, strides, norm, non_linearity, mode)
        for _ in range(n_blocks - 1):
            blocks += IdentityBlock(3, filters, norm, non_linearity, mode)
        return blocks

    return tl.Serial(
        tl.ToFloat(),
        tl.Conv(d_hidden, (7, 7), (2, 2), "SAME"),
        norm(mode=mode),
        non_linearity(),
        tl.MaxPool(pool_size=(3, 3), strides=(2, 2)),
        stage(1, (1, 1), 3),
        stage(2, (2, 2), 4),
        stage(4, (2, 2), 6),
        stage(8, (2, 2), 3),
        tl.AvgPool(pool_size=(7, 7)),
        tl.Flatten(),
        tl.Dense(n_output_classes),
    )


def WideResnet(
    n_blocks: int = 3,
    widen_factor: int = 1,
    n_output_classes: int = 10,
    bn_momentum: float = 0.9,
    mode: tl.Mode = "train",
) -> tl.Layer:
    """Returns a wide ResNet of 6 n_blocks + 4 layers: images in, activations of classes out.

    It maps numbers of any type (batch, 32, 32, channels) to floats (batch, n_output_classes).

    Args:
      n_blocks: number of blocks in each of three groups.
      widen_factor: how many times 16, 32 and 64 channels the groups have.
      n_output_classes: number of classes.
      bn_momentum: how much of the running averages a step keeps; see `BatchNorm`.
      mode: `'train'`, `'eval'` or `'predict'`.

    Source: Trax `models/resnet.py::WideResnet`; Zagoruyko and Komodakis 2016, arXiv:1605.07146.
    """
    return tl.Serial(
        tl.ToFloat(),
        tl.Conv(16, (3, 3), padding="SAME"),
        WideResnetGroup(n_blocks, 16 * widen_factor, (1, 1), bn_momentum, mode),
        WideResnetGroup(n_blocks, 32 * widen_factor, (2, 2), bn_momentum, mode),
        WideResnetGroup(n_blocks, 64 * widen_factor, (2, 2), bn_momentum, mode),
        tl.BatchNorm(momentum=bn_momentum, mode=mode),
        tl.Relu(),
        tl.AvgPool(pool_size=(8, 8)),
        tl.Flatten(),
        tl.Dense(n_output_classes),
    )


def ConvBlock(
    kernel_size: int,
    filters: Sequence[int],
    strides: Sequence[int],
    norm: Maker,
    non_linearity: Maker,
    mode: tl.Mode = "train",
) -> list[tl.Layer]:
    """Returns a block that changes the number of channels, and the size by `strides`.

    Args:
      kernel_size: height and width of the middle convolution's window.
      filters: number of channels of the three convolutions.
      strides: of the first convolution, and of the shortcut's.
      norm: makes a normalization, `norm(mode=mode)`.
      non_linearity: makes an activation.
      mode: `'train'`, `'eval'` or `'predict'`.
    """
    main = _bottleneck(kernel_size, filters, strides, norm, non_linearity, mode)
    shortcut = [tl.Conv(filters[2], (1, 1), strides), norm(mode=mode)]
    return [tl.Residual(main, shortcut=shortcut), non_linearity()]


def IdentityBlock(
    kernel_size: int,
    filters: Sequence[int],
    norm: Maker,
    non_linearity: Maker,
    mode: tl.Mode = "train",
) -> list[tl.Layer]:
    """Returns a block that keeps the size and the number of channels; see `ConvBlock`."""
    main = _bottleneck(kernel_size, filters, None, norm, non_linearity, mode)
    return [tl.Residual(main), non_linearity()]


def WideResnetBlock(
    channels: int,
    strides: Sequence[int] = (1, 1),
    bn_momentum: float = 0.9,
    mode: tl.Mode = "train",
) -> list[tl.Layer]:
    """Returns two convolutions, each after a normalization and an activation."""
    return [
        tl.BatchNorm(momentum=bn_momentum, mode=mode),
        tl.Relu(),
        tl.Conv(channels, (3, 3), strides, padding="SAME"),
        tl.BatchNorm(momentum=bn_momentum, mode=mode),
        tl.Relu(),
        tl.Conv(channels, (3, 3), padding="SAME"),
    ]


def WideResnetGroup(
    n: int,
    channels: int,
    strides: Sequence[int] = (1, 1),
    bn_momentum: float = 0.9,
    mode: tl.Mode = "train",
) -> list[tl.Layer]:
    """Returns `n` blocks; the first changes size and channels, the others have one shortcut."""
    shortcut = [tl.Conv(channels, (3, 3), strides, padding="SAME")]
    rest = [WideResnetBlock(channels, (1, 1), bn_momentum, mode) for _ in range(n - 1)]
    return [
        tl.Residual(WideResnetBlock(channels, strides, bn_momentum, mode), shortcut=shortcut),
        tl.Residual(rest),
    ]


def _bottleneck(
    kernel_size: int,
    filters: Sequence[int],
    strides: Sequence[int] | None,
    norm: Maker,
    non_linearity: Maker,
    mode: tl.Mode,
) -> list[tl.Layer]:
    return [
        tl.Conv(filters[0], (1, 1), strides),
        norm(mode=mode),
        non_linearity(),
        tl.Conv(filters[1], (kernel_size, kernel_size), padding="SAME"),
        norm(mode=mode),
        non_linearity(),
        tl.Conv(filters[2], (1, 1)),
        norm(mode=mode),
    ]
