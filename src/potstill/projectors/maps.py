"""Maps from student channels to teacher channels, pixel by pixel: [B,C,H,W] -> [B,C_t,H,W].

Decisions:
- Each is a 1x1 convolution, with or without a batch norm behind it. W starts orthogonal, as for tokens.
- `BatchNorm` normalises by its running statistics where a batch holds one value a channel, which has no variance.
"""

from collections.abc import Callable

from torch import Tensor, nn

from potstill.projectors.tokens import OrthogonalMap

CONV = "conv"


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a batch of one value a channel too, as a pooled map of one image is."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]."""
        if not self.training or maps.numel() > maps.shape[1]:
            return super().forward(maps)
        return nn.functional.batch_norm(maps, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class OverChannels(nn.Module):
    """A map of vectors, taken to the channels of each pixel."""

    def __init__(self, vectors: nn.Module) -> None:
        super().__init__()
        self.vectors = vectors

    def forward(self, maps: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C_t,H,W]."""
        projected: Tensor = self.vectors(maps.movedim(1, -1))
        return projected.movedim(-1, 1)


def convolution(student_width: int, teacher_width: int, *, bias: bool = True) -> nn.Conv2d:
    """A 1x1 convolution that starts as an orthogonal map."""
    layer = nn.Conv2d(student_width, teacher_width, kernel_size=1, bias=bias)
    nn.init.orthogonal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _with_norm(student_width: int, teacher_width: int) -> nn.Module:
    return nn.Sequential(convolution(student_width, teacher_width, bias=False), BatchNorm(teacher_width))


def _with_norm_and_relu(student_width: int, teacher_width: int) -> nn.Module:
    return nn.Sequential(*_with_norm(student_width, teacher_width).children(), nn.ReLU())


def _orthogonal(student_width: int, teacher_width: int) -> nn.Module:
    return OverChannels(OrthogonalMap(student_width, teacher_width))


MAP_PROJECTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    CONV: convolution,
    "conv_bn": _with_norm,
    "conv_bn_relu": _with_norm_and_relu,
    "conv_orthogonal": _orthogonal,
}
