"""InvAD as published: every convolution of the generator per sample, as one grouped convolution.

Its weights do not depend on the sample, so the outputs are those of ordinary convolutions; this is
the reference that equality and speed are held against.
"""

import types

from torch.nn import functional as F

from replaycad.detectors.invad.blocks import SLOPE, EqualizedUp, ModulatedConv, ResidualBlock


def per_sample(detector):
    """Make an InvAD convolve sample by sample, from its constant on; returns it."""
    generator = detector.generator
    for module in generator.modules():
        if isinstance(module, ModulatedConv):
            module.conv.forward = types.MethodType(_conv, module.conv)
        elif isinstance(module, EqualizedUp) and module.kernel_size == 3:
            module.forward = types.MethodType(_up, module)
        elif isinstance(module, ResidualBlock) and not module.up:
            module.skip.forward = types.MethodType(_conv, module.skip)
    generator.forward = types.MethodType(_generate, generator)
    return detector


def _finish(module, x):
    if module.bias is not None:
        x = x + (module.bias * module.gain)[:, None, None]
    return F.leaky_relu(x, SLOPE) if module.activate else x


def _repeated(weight, batch):
    return weight.expand(batch, *weight.shape).reshape(-1, *weight.shape[1:])


def _conv(module, x):
    batch, _, height, width = x.shape
    weight = _repeated(module.weight * module.scale, batch)
    x = F.conv2d(x.reshape(1, -1, height, width), weight, padding=module.padding, groups=batch)
    return _finish(module, x.reshape(batch, -1, height, width))


def _up(module, x):
    batch, _, height, width = x.shape
    weight = _repeated(module.weight * module.scale, batch)
    x = F.conv_transpose2d(x.reshape(1, -1, height, width), weight, stride=2, groups=batch)
    x = x.reshape(batch, -1, 2 * height + 1, 2 * width + 1)
    return _finish(module, F.conv2d(x, module.blur, padding=1, groups=x.shape[1]))


def _generate(generator, styles):
    x = generator.stem(generator.constant.expand(len(styles[0]), -1, -1, -1))
    outputs = []
    parts = zip(styles, generator.heads, generator.levels, generator.project, strict=True)
    for source, head, blocks, project in parts:
        style = head(source)
        for block in blocks:
            x = block(x, style)
        outputs.append(project(x))
    return outputs[::-1]
