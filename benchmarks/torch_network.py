"""GaterNet in PyTorch, with the structure and the names of the authors' released code.

Shares nothing with `gaternet_tf`. The benchmark compares its speed, and the tests of
`train.convert` its answers and the names of its tensors.
"""

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64)


class Shortcut(nn.Module):
    """The projection of a unit that changes the number of channels."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        """Returns the projected input."""
        return self.bn(self.conv(x))


class Block(nn.Module):
    """A residual unit, gated on its last convolution."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if inputs != outputs:
            self.shortcut = Shortcut(inputs, outputs, stride)

    def forward(self, x, gates=None):
        """Returns the unit's output; `gates` is [batch, outputs]."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if gates is not None:
            y = y * gates[:, :, None, None]
        return functional.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class ResNet(nn.Module):
    """A backbone, whose output layer is named `fc`, or the body of a gater with `newfc`."""

    def __init__(self, depth, head, outputs):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate(WIDTHS, start=1):
            blocks = nn.Module()
            for number in range(1, (depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                blocks.add_module(f"block{number}", Block(inputs, width, stride))
                inputs = width
            self.add_module(f"stage{stage}", blocks)
        self.head = head
        self.add_module(head, nn.Linear(64, outputs))

    def forward(self, x, gates=None):
        """Returns the output layer's values; `gates` is [batch, gates of all units]."""
        x = functional.relu(self.bn(self.conv(x)))
        used = 0
        for stage, width in enumerate(WIDTHS, start=1):
            for block in getattr(self, f"stage{stage}").children():
                x = block(x, None if gates is None else gates[:, used : used + width])
                used += width
        return getattr(self, self.head)(x.mean(dim=(2, 3)))


class Layers(nn.Module):
    """Layers named `fc`."""

    def __init__(self, *layers):
        super().__init__()
        self.fc = nn.Sequential(*layers)


class Gater(nn.Module):
    """The gater: hard gates at inference, Improved SemHash in training."""

    def __init__(self, depth, gates):
        super().__init__()
        self.resnet = ResNet(depth, "newfc", 8)
        self.fnn = Layers(nn.Linear(8, gates))

    def forward(self, x):
        """Returns the gates, [batch, gates]."""
        z = self.fnn.fc(functional.relu(self.resnet(x)))
        if not self.training:
            return (torch.clamp(1.2 * torch.sigmoid(z) - 0.1, 0, 1) > 0.49999).float()
        z = z + torch.randn_like(z)
        soft = torch.clamp(1.2 * torch.sigmoid(z) - 0.1, 0, 1)
        hard = (z > 0).float() + soft - soft.detach()
        return torch.where(torch.rand(len(z), 1) < 0.5, hard, soft)


class GaterNet(nn.Module):
    """Backbone and gater."""

    def __init__(self, depth, gater_depth):
        super().__init__()
        self.backbone = ResNet(depth, "fc", 10)
        self.gater = Gater(gater_depth, (depth - 2) // 6 * sum(WIDTHS))

    def forward(self, x):
        """Returns (logits, gates) of float32 [batch, 3, height, width]."""
        gates = self.gater(x)
        return self.backbone(x, gates), gates


def training_step(backbone, gater, images, labels):
    """Returns a function that does one step of SGD on a batch, channels last."""
    depths = (int(name.removeprefix("resnet")) for name in (backbone, gater))
    model = GaterNet(*depths).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)

    def step():
        optimizer.zero_grad(set_to_none=True)
        logits, gates = model(x)
        (functional.cross_entropy(logits, y) + 0.1 * gates.abs().mean()).backward()
        optimizer.step()

    return step
