"""Maps from student width to teacher width. They train beside the student and never end up in it.

Decisions:
- A kind is a row of one table, so that a recipe's name is all that anything else needs to know. There are three: for
  tokens, for feature maps, and joint ones, which see all stages of a term at once (`JointProjection`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from potstill.checks import unknown_name
from potstill.errors import ArgumentError
from potstill.projectors.fusion import ChannelChoice, PixelGates, StageFusion
from potstill.projectors.maps import CONV, MAP_PROJECTIONS
from potstill.projectors.patches import IMAGE_CHANNELS, AssistedPatches, MixedPatches
from potstill.projectors.tokens import LINEAR, TOKEN_PROJECTIONS

PROJECTIONS = tuple(TOKEN_PROJECTIONS)
CONVOLUTIONS = tuple(MAP_PROJECTIONS)
_FUSERS: dict[str, Callable[[], nn.Module]] = {"csf": ChannelChoice, "abf": PixelGates}
FUSIONS = tuple(_FUSERS)
ASSISTANT = "embedding_assistant"
PATCH_PROJECTIONS = ("gl_mixer", ASSISTANT)
JOINT = (*FUSIONS, *PATCH_PROJECTIONS)

__all__ = [
    "ASSISTANT",
    "CONV",
    "CONVOLUTIONS",
    "FUSIONS",
    "IMAGE_CHANNELS",
    "JOINT",
    "LINEAR",
    "PATCH_PROJECTIONS",
    "PROJECTIONS",
    "JointProjection",
    "projector",
]


_KINDS: dict[str, Callable[[int, int], nn.Module]] = {**TOKEN_PROJECTIONS, **MAP_PROJECTIONS}


def projector(kind: str, student_width: int, teacher_width: int) -> nn.Module:
    """A trainable map [*, student_width] -> [*, teacher_width], or of feature maps [B, student_width, H, W].

    linear: W h + b;  relu: max(W h + b, 0);  tanh: tanh(W h + b);  orthogonal: W h with W' W = 1, or W W' = 1 where the
    teacher is the narrower one

    Of maps, pixel by pixel: conv: W f + b;  conv_bn: batch norm of W f;  conv_bn_relu: max(batch norm of W f, 0);
    conv_orthogonal: W f as of `orthogonal`

    Args:
        kind: linear, relu, tanh, orthogonal; of maps conv, conv_bn, conv_bn_relu, conv_orthogonal.
        student_width: the width that comes in, at least 1.
        teacher_width: the width that goes out, at least 1.

    Raises:
        ArgumentError: an unknown kind; the nearest is suggested.

    References:
        linear, conv: Romero et al.: FitNets, 2015, https://arxiv.org/abs/1412.6550, and Jiao et al.: TinyBERT, 2020,
        https://arxiv.org/abs/1909.10351
        relu, tanh: Yang et al.: TextBrewer, 2020, https://arxiv.org/abs/2002.12620
        orthogonal: Miles, Elezi, Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections, 2024,
        https://arxiv.org/abs/2403.06213
        conv_bn_relu: Liu et al.: TransKD, 2022, https://arxiv.org/abs/2202.13393 (its code, for channel-wise KD)

    Prefer `linear`, and `conv` of maps. `relu` reaches no negative number and `tanh` none beyond 1, so take them for a
    teacher's state that went through the same function, such as a pooler's, or the features of a ResNet. Take
    `orthogonal` where a free map would learn what the student should: it can turn the student's state, and neither
    stretch nor drop any of it. A batch norm gives the student's map a scale of its own, whatever the teacher's is: take
    it with losses that look at shapes, such as `channel_kl_divergence`.
    """
    if kind not in _KINDS:
        raise ArgumentError(unknown_name("projection", kind, _KINDS))
    return _KINDS[kind](student_width, teacher_width)


@dataclass(frozen=True)
class JointProjection:
    """A projection that sees all pairs of a term at once: one module, called with the student's `Knowledge` and its
    pixels, that gives stage -> tensor with the teacher's width.

    Args:
        kind: csf or abf, of feature maps; gl_mixer or embedding_assistant, of patch embeddings.
        stages: the student's, first to last, each once.
        student_widths, teacher_widths: of these stages, and of those that they meet.
        before: for the embedding assistant: the channels of the features before each stage.
    """

    kind: str
    stages: tuple[int, ...]
    student_widths: tuple[int, ...]
    teacher_widths: tuple[int, ...]
    before: tuple[int, ...] = ()

    def build(self) -> nn.Module:
        """The module, newly initialised."""
        sizes = (self.stages, self.student_widths, self.teacher_widths)
        if self.kind == ASSISTANT:
            return AssistedPatches(*sizes, self.before)
        return StageFusion(_FUSERS[self.kind], *sizes) if self.kind in _FUSERS else MixedPatches(*sizes)

    def __str__(self) -> str:
        widths = (", ".join(map(str, found)) for found in (self.student_widths, self.teacher_widths))
        return f"{self.kind} {' to '.join(widths)}"
