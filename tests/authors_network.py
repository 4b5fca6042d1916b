"""GaterNet in PyTorch, written from the description of the authors' format for these tests.

Shares nothing with `gaternet_tf`: an independent statement of the network, of the names of its
tensors, and of how gates are applied.
"""

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


class Shortcut(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn(self.conv(x))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if inputs != outputs:
            self.shortcut = Shortcut(inputs, outputs, stride)

    def forward(self, x, gates=None):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if gates is not None:
            y = y * gates[:, :, None, None]
        return functional.relu(y + (self.shortcut(x) if hasattr(self, "shortcut") else x))


class ResNet(nn.Module):
    """With `fc` a backbone, with `newfc` the body of a gater."""

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
        x = functional.relu(self.bn(self.conv(x)))
        used = 0
        for stage, width in enumerate(WIDTHS, start=1):
            for block in getattr(self, f"stage{stage}").children():
                x = block(x, None if gates is None else gates[:, used : used + width])
                used += width
        return getattr(self, self.head)(x.mean(dim=(2, 3)))


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.fc = nn.Sequential(*layers)


class Gater(nn.Module):
    def __init__(self, gates):
        super().__init__()
        self.resnet = ResNet(20, "newfc", 8)
        self.fnn = Layers(nn.Linear(8, gates))

    def forward(self, x):
        z = self.fnn.fc(functional.relu(self.resnet(x)))
        return (torch.clamp(1.2 * torch.sigmoid(z) - 0.1, 0, 1) > 0.49999).float()


class GaterNet:
    """Both parts, with random weights and random batch-norm statistics."""

    def __init__(self, depth, seed=0):
        torch.manual_seed(seed)
        self.backbone = ResNet(depth, "fc", 10)
        self.gater = Gater((depth - 2) // 6 * sum(WIDTHS))
        for part in (self.backbone, self.gater):
            part.eval()
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.2)
                    nn.init.normal_(module.running_mean, 0, 0.3)
                    nn.init.uniform_(module.running_var, 0.5, 2)

    def __call__(self, pictures):
        """(logits, gates) of uint8 pictures [n, 32, 32, 3]."""
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.no_grad():
            gates = self.gater(x)
            return self.backbone(x, gates).numpy(), gates.numpy()

    def content(self, prefix=""):
        """What the authors' files hold."""
        return {
            "backbone_state_dict": prefixed(self.backbone.state_dict(), prefix),
            "gater_state_dict": prefixed(self.gater.state_dict(), prefix),
        }

    def load(self, content):
        """Takes the weights of a file in the authors' format, all of them."""
        for part, name in ((self.backbone, "backbone"), (self.gater, "gater")):
            missing, unexpected = part.load_state_dict(content[f"{name}_state_dict"], strict=False)
            assert all(key.endswith("num_batches_tracked") for key in missing), missing
            assert not unexpected


def prefixed(state_dict, prefix):
    """The state dictionary of a module inside `DataParallel`, for `prefix="module."`."""
    for key in list(state_dict):
        state_dict[prefix + key] = state_dict.pop(key)
    return state_dict
