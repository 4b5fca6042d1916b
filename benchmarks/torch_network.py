"""A gated ResNet of basic units in PyTorch with its training step, to compare speed with."""

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64)


def normalized(inputs, outputs, kernel, stride=1):
    """Convolution without bias and batch normalisation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Unit(nn.Module):
    """A residual unit, gated on its last convolution."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = normalized(inputs, outputs, 3, stride)
        self.last = normalized(outputs, outputs, 3)
        self.shortcut = normalized(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x, gates=None):
        """One unit."""
        y = self.last(functional.relu(self.first(x)))
        if gates is not None:
            y = y * gates[:, :, None, None]
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Network(nn.Module):
    """A ResNet with an output layer."""

    def __init__(self, depth, outputs):
        super().__init__()
        self.stem = normalized(3, 16, 3)
        self.units = nn.ModuleList()
        inputs = 16
        for width in WIDTHS:
            for number in range((depth - 2) // 6):
                self.units.append(Unit(inputs, width, 2 if width > 16 and number == 0 else 1))
                inputs = width
        self.output = nn.Linear(64, outputs)

    def forward(self, x, gates=None):
        """Logits; `gates` is a list with [batch, width] for each unit."""
        x = functional.relu(self.stem(x))
        for number, unit in enumerate(self.units):
            x = unit(x, None if gates is None else gates[number])
        return self.output(x.mean(dim=(2, 3)))


class GaterNet(nn.Module):
    """Gater and backbone with Improved SemHash."""

    def __init__(self, depth, gater_depth):
        super().__init__()
        self.backbone = Network(depth, 10)
        self.gater = Network(gater_depth, 8)
        self.widths = [width for width in WIDTHS for _ in range((depth - 2) // 6)]
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, sum(self.widths)))

    def forward(self, x):
        """(logits, gates) as in training."""
        z = self.head(self.gater(x))
        z = z + torch.randn_like(z)
        soft = (1.2 * torch.sigmoid(z) - 0.1).clamp(0, 1)
        hard = (z > 0).float() + soft - soft.detach()
        coin = torch.rand(len(z), 1) < 0.5
        gates = torch.where(coin, hard, soft)
        return self.backbone(x, gates.split(self.widths, dim=1)), gates


def training_step(backbone, gater, images, labels):
    """A function that does one step of SGD on a batch, channels last."""
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
