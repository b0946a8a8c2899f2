"""Networks for own-networks.yaml: one in twenty lines, and a ConvNeXt of timm for small cohorts."""

from torch import nn


def block(inputs, channels):
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def net(classes, width=8):
    body = [block(3, width), block(width, 2 * width), block(2 * width, 4 * width), block(4 * width, 8 * width)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes))


def convnext(classes, **options):
    """timm's smallest ConvNeXt, with its `options`, and with torch's initial weights instead of timm's."""
    import timm

    model = timm.create_model("convnext_atto", num_classes=classes, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return model
