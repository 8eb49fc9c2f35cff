"""Fusions: projections of feature maps that see all stages, from the deepest to the first.

Decisions:
- One module for all pairs of a term. It is called with what was observed in the student, and gives each stage's map
  with the teacher's channels, at the student's size.
- What is handed on from stage to stage has `WIDTH` channels, in student and teacher of any size.
- Stages meet by their own sizes: the deeper map is brought to the size of the next one, whatever the factor.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.knowledge.types import Knowledge
from potstill.projectors.maps import BatchNorm

WIDTH = 64  # channels that are handed on
SQUEEZED = 32  # channels that the choice between two maps goes through


class StageFusion(nn.Module):
    """Each stage's map, fused with what the deeper ones hand down, then brought to its teacher's channels.

    X_m = BN(conv1x1(F_m));  Z_m = fuse(X_m, up(Z_m+1)), and X_m at the deepest;  F'_m = BN(conv3x3(Z_m))

    Args:
        fuser: makes what fuses two maps [B,64,H,W]: `ChannelChoice` (CSF) or `PixelGates` (ABF).
        stages: the student's stages, first to last.
        student_channels, teacher_channels: of these stages, and of the teacher's stages that they meet.
    """

    def __init__(
        self,
        fuser: Callable[[], nn.Module],
        stages: Sequence[int],
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.enter = nn.ModuleList(_normed(channels, WIDTH, 1) for channels in student_channels)
        self.leave = nn.ModuleList(_normed(WIDTH, channels, 3) for channels in teacher_channels)
        self.fuse = nn.ModuleList(fuser() for _ in self.stages[:-1])

    def forward(self, known: Knowledge, pixels: Tensor | None = None) -> dict[int, Tensor]:
        """The student's feature maps -> stage -> [B,C_t,H,W]."""
        found: dict[int, Tensor] = {}
        handed: Tensor | None = None
        for place in reversed(range(len(self.stages))):
            stage = self.stages[place]
            own = self.enter[place](known.features[stage])
            if handed is None:
                handed = own
            else:
                handed = self.fuse[place](own, functional.interpolate(handed, own.shape[-2:], mode="nearest"))
            found[stage] = self.leave[place](handed)
        return found


class ChannelChoice(nn.Module):
    """CSF: every channel chooses between the stage's own map and the deeper one's, by what both hold on the whole.

    s = mean over pixels of X + Y;  z = ReLU(BN(V s));  a_X, a_Y = softmax over the two of (A z, B z), by channel;
    Z = a_X X + a_Y Y

    A batch of one image has one value a channel in s, and BN takes its running statistics then. The published code
    keeps a second V for that, which learns from nothing else.

    References:
        Liu et al.: TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation, 2022,
        https://arxiv.org/abs/2202.13393
        Li, Wang, Hu, Yang: Selective Kernel Networks, 2019, https://arxiv.org/abs/1903.06586

    Prefer `PixelGates` for few parameters: it chooses by pixel, not by channel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(WIDTH, SQUEEZED, kernel_size=1, bias=False)
        self.norm = BatchNorm(SQUEEZED)
        self.choose = nn.ModuleList(nn.Conv2d(SQUEEZED, WIDTH, kernel_size=1) for _ in range(2))

    def forward(self, own: Tensor, deeper: Tensor) -> Tensor:
        """Two maps [B,64,H,W] -> one."""
        pooled = (own + deeper).mean((2, 3), keepdim=True)
        chosen = functional.relu(self.norm(self.squeeze(pooled)))
        share, rest = torch.stack([choice(chosen) for choice in self.choose]).softmax(0)
        fused: Tensor = share * own + rest * deeper
        return fused


class PixelGates(nn.Module):
    """ABF: every pixel has two gates, for the stage's own map and for the deeper one's.

    z_X, z_Y = sigmoid(conv1x1(X, Y));  Z = z_X X + z_Y Y

    References:
        Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, 2021, https://arxiv.org/abs/2104.09044

    Prefer `ChannelChoice` between transformers, as TransKD found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * WIDTH, 2, kernel_size=1)

    def forward(self, own: Tensor, deeper: Tensor) -> Tensor:
        """Two maps [B,64,H,W] -> one."""
        gates = self.gates(torch.cat([own, deeper], dim=1)).sigmoid()
        fused: Tensor = own * gates[:, :1] + deeper * gates[:, 1:]
        return fused


def _normed(channels: int, to: int, size: int) -> nn.Sequential:
    layer = nn.Conv2d(channels, to, kernel_size=size, padding=size // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return nn.Sequential(layer, BatchNorm(to))
