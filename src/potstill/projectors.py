"""Maps from student width to teacher width. They train beside the student and never end up in it."""

from torch import nn

LINEAR = "linear"
PROJECTIONS = (LINEAR,)


def projector(kind: str, student_width: int, teacher_width: int) -> nn.Module:
    """A trainable map [*, student_width] -> [*, teacher_width]. ``linear`` is W h + b, as FitNets and TinyBERT have it.

    W starts as an orthogonal map, so that at the start the student's hidden state keeps its lengths and angles and the
    loss is about the state, not about a random projection; b starts at 0.
    """
    if kind != LINEAR:
        raise ValueError(f"Unknown projection '{kind}'. Known: {', '.join(PROJECTIONS)}.")
    linear = nn.Linear(student_width, teacher_width)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
