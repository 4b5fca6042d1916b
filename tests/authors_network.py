"""The authors' network with random weights, its answers and its files."""

import torch
from torch import nn

from benchmarks import torch_network

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


class GaterNet(torch_network.GaterNet):
    """At inference, with random weights and random batch-norm statistics."""

    def __init__(self, depth, gater_depth=20, seed=0):
        torch.manual_seed(seed)
        super().__init__(depth, gater_depth)
        self.eval()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(module.running_mean, 0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def predict(self, pictures):
        """(logits, gates) of uint8 pictures [n, 32, 32, 3]."""
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.no_grad():
            logits, gates = self(x)
        return logits.numpy(), gates.numpy()

    def content(self, prefix=""):
        """What the authors' files hold; inside `DataParallel` the prefix is "module."."""
        return {
            f"{name}_state_dict": {prefix + key: value for key, value in part.state_dict().items()}
            for name, part in self.named_children()
        }

    def load(self, content):
        """Takes the weights of a file in the authors' format, all of them."""
        for name, part in self.named_children():
            missing, unexpected = part.load_state_dict(content[f"{name}_state_dict"], strict=False)
            assert all(key.endswith("num_batches_tracked") for key in missing), missing
            assert not unexpected
