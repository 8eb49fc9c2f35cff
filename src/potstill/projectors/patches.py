"""Projections of patch embeddings that see more than one stage's: the GL-Mixer and the embedding assistant.

Decisions:
- One module for all pairs of a term, called with what was observed in the student and with its pixels. A linear map a
  stage brings the teacher's width, in each of them.
- Every scalar has a value from the start. The published code leaves those of the GL-Mixer uninitialised, and
  whatever stands in memory there, NaN too, is what the training begins with.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.checks import problem
from potstill.errors import ShapeError
from potstill.knowledge.types import Knowledge
from potstill.projectors.tokens import linear

HEADS = 8
IMAGE_CHANNELS = 3


class GlobalLocalMixer(nn.Module):
    """Attention over all patches beside a gated convolution over their neighbours, [B,N,C] -> [B,N,C].

    alpha * attention(E) + beta * conv3(E) * sigmoid(conv3'(E)), the convolutions over patches row by row; alpha and
    beta are learned, and 0.5 at the start: the mean of both branches

    Args:
        width: C; the attention has 8 heads, or the most up to 8 that divide it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = math.gcd(HEADS, width)
        self.attend = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width)
        self.local = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.gate = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.alpha = nn.Parameter(torch.tensor([0.5]))
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def forward(self, patches: Tensor) -> Tensor:
        """[B,N,C] -> [B,N,C]."""
        batch, count, width = patches.shape
        parts = self.attend(patches).reshape(batch, count, 3, self.heads, width // self.heads)
        attended = functional.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4).unbind(0))
        distant = self.merge(attended.transpose(1, 2).reshape(batch, count, width))
        row = patches.transpose(1, 2)
        near = (self.local(row) * self.gate(row).sigmoid()).transpose(1, 2)
        mixed: Tensor = self.alpha * distant + self.beta * near
        return mixed


class MixedPatches(nn.Module):
    """A linear map a stage, and before that of the last stage a `GlobalLocalMixer`.

    E'_m = linear(E_m);  E'_last = linear(mixer(E_last))

    Args:
        stages: the student's stages, first to last.
        student_widths, teacher_widths: of their patch embeddings, and of those that they meet.

    References:
        Liu et al.: TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation, 2022,
        https://arxiv.org/abs/2202.13393
        Wu, Liu, Lin, Lin, Han: Lite Transformer with Long-Short Range Attention, 2020,
        https://arxiv.org/abs/2004.11886 (the two branches)
    """

    def __init__(self, stages: Sequence[int], student_widths: Sequence[int], teacher_widths: Sequence[int]) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.maps = nn.ModuleList(linear(*widths) for widths in zip(student_widths, teacher_widths, strict=True))
        self.mixer = GlobalLocalMixer(student_widths[-1])

    def forward(self, known: Knowledge, pixels: Tensor | None = None) -> dict[int, Tensor]:
        """The student's patch embeddings -> stage -> [B,N,C_t]."""
        found = {stage: known.patches[stage] for stage in self.stages}
        found[self.stages[-1]] = self.mixer(found[self.stages[-1]])
        return {stage: to_teacher(found[stage]) for stage, to_teacher in zip(self.stages, self.maps, strict=True)}


class AssistedPatches(nn.Module):
    """EA: patch embeddings of the teacher's width, made of what the student's own are made of, stand beside them.

    E'_m = u_m * linear(E_m) + v_m * A_m;  A_1 = patches of the image (7x7, stride 4), A_m = patches of the student's
    features of the stage before (3x3, stride 2), as SegFormer and PVTv2 make theirs. u and v are learned; of S stages
    they start at u_m = m/10 and v_m = (S + m)/10, m from 1.

    Args:
        stages: the student's stages, first to last.
        student_widths, teacher_widths: of their patch embeddings, and of those that they meet.
        before: channels of the student's features of the stage before each; those of the image before the first.

    References:
        Liu et al.: TransKD: Transformer Knowledge Distillation for Efficient Semantic Segmentation, 2022,
        https://arxiv.org/abs/2202.13393
    """

    def __init__(
        self,
        stages: Sequence[int],
        student_widths: Sequence[int],
        teacher_widths: Sequence[int],
        before: Sequence[int],
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.maps = nn.ModuleList(linear(*widths) for widths in zip(student_widths, teacher_widths, strict=True))
        self.assistants = nn.ModuleList(
            OverlappingPatches(channels, width, *((7, 4) if stage == 0 else (3, 2)))
            for stage, channels, width in zip(stages, before, teacher_widths, strict=True)
        )
        count = len(self.stages)
        self.own = nn.Parameter(torch.arange(1, count + 1) / 10)
        self.assisted = nn.Parameter(torch.arange(count + 1, 2 * count + 1) / 10)

    def forward(self, known: Knowledge, pixels: Tensor | None = None) -> dict[int, Tensor]:
        """The student's patch embeddings, features and pixels -> stage -> [B,N,C_t]."""
        found = {}
        for place, stage in enumerate(self.stages):
            own = self.maps[place](known.patches[stage])
            source = pixels if stage == 0 else known.features[stage - 1]
            assert source is not None, "an embedding assistant of the first stage needs the image"
            assistant = self.assistants[place](source)
            if own.shape != assistant.shape:
                raise ShapeError(
                    problem(
                        "The embedding assistant makes its patches by strides of 4, then 2, as SegFormer and PVTv2 do",
                        given=f"stage {stage}: {own.shape[1]} patches of the student, {assistant.shape[1]} of it",
                        do="Take project: gl_mixer or linear for this student",
                    )
                )
            found[stage] = self.own[place] * own + self.assisted[place] * assistant
        return found


class OverlappingPatches(nn.Module):
    """A strided convolution whose windows overlap, and a layer norm: [B,C,H,W] -> [B,N,C_t]."""

    def __init__(self, channels: int, width: int, size: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, kernel_size=size, stride=stride, padding=size // 2)
        self.norm = nn.LayerNorm(width)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out")
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Patches row by row."""
        normed: Tensor = self.norm(self.convolution(maps).flatten(2).transpose(1, 2))
        return normed
