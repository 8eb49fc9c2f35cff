"""`Distiller`: student and projections as one module whose forward is the loss.

DDP and FSDP see every trained parameter in one forward. The teacher is held outside the module tree: it is in no
`parameters()`, no state dict and no optimiser, runs in eval mode under no-grad, and its outputs carry no gradient.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge import Knowledge, Observer, describe
from potstill.knowledge.architectures import cast
from potstill.knowledge.taps import check_needs
from potstill.objective import BoundObjective, Objective, Parts
from potstill.projectors import projector
from potstill.tasks.base import Task


class Distiller(nn.Module):
    """The student, its projections, and the teacher to learn from (None where only labels teach).

    Args:
        student: the model that is trained, and saved as a plain model.
        objective: the terms; bound here to the shapes of both models.
        task: says what labels and masks mean.
        teacher: the model to learn from; put into eval mode, and otherwise left as it was.
        teacher_dtype: the precision that the teacher runs in, as a copy where it has another; None leaves it as it is.

    Raises:
        RecipeError: the objective doesn't fit the models.
        ModelError: teacher and student don't share a vocabulary or are one object, or what a term asks for can't be
            observed in one of them.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        objective: Objective,
        task: Task,
        teacher: PreTrainedModel | None = None,
        *,
        teacher_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.task = task
        self.objective = bind(objective, student, task, teacher)
        self.projectors = nn.ModuleDict(
            {name: projector(*sizes) for name, sizes in self.objective.projections().items()}
        )
        self._observe_student = Observer(student, self.objective.needs("student"))
        check_needs(student, self.objective.needs("student"))
        if teacher is not None:
            check_needs(teacher, self.objective.needs("teacher"))
        held = None
        if teacher is not None and self.objective.needs_teacher:
            if teacher_dtype not in (None, teacher.dtype):
                teacher = cast(copy.deepcopy(teacher), teacher_dtype)
            teacher.eval()  # type: ignore[no-untyped-call]
            held = Observer(teacher, self.objective.needs("teacher"))
        self.__dict__["_observe_teacher"] = held  # past nn.Module's registration: never a submodule

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The teacher that this objective asks, if any."""
        observer: Observer | None = self.__dict__["_observe_teacher"]
        return None if observer is None else observer.model

    def to(self, *args: Any, **kwargs: Any) -> "Distiller":
        """Move the teacher along with the student, though it is no submodule; its precision stays its own."""
        super().to(*args, **kwargs)
        if self.teacher is not None:
            self.teacher.to(self.student.device)  # type: ignore[arg-type]
        return self

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the student's activations in the backward pass, as `Trainer` asks where its arguments say so."""
        self.student.activation_checkpointing_enable(*args, **kwargs)

    def teach(self, batch: Mapping[str, Tensor]) -> Knowledge | None:
        """What the teacher knows of a batch, without gradients."""
        observer: Observer | None = self.__dict__["_observe_teacher"]
        if observer is None:
            return None
        with torch.no_grad(), torch.autocast(self.student.device.type, enabled=False):
            return observer(batch)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        counts: Mapping[str, Tensor | float] | None = None,
        progress: float = 0.0,
    ) -> Parts:
        """The loss of a micro-batch, with the denominators of the whole accumulation window in `counts`."""
        return self.objective(
            self._observe_student(batch),
            self.teach(batch),
            self.task.targets(batch),
            self.task.masks(batch),
            counts=counts,
            progress=progress,
            projectors=self.projectors,  # type: ignore[arg-type]
        )


def bind(objective: Objective, student: PreTrainedModel, task: Task, teacher: PreTrainedModel | None) -> BoundObjective:
    """An objective bound to two models and a task; refuses models that don't share a vocabulary."""
    if teacher is student:
        raise ModelError(
            problem(
                "Teacher and student are one object",
                follows="The teacher would change with the student, and teach it nothing",
                do="Give a copy: build_student(teacher)",
            )
        )
    shapes = describe(student), None if teacher is None else describe(teacher)
    if shapes[1] is not None and shapes[0].vocabulary != shapes[1].vocabulary:
        raise ModelError(
            problem(
                "Teacher and student have different vocabularies",
                given=f"student {shapes[0].vocabulary} entries, teacher {shapes[1].vocabulary}",
                follows="The same ids would mean different words to each, and the student would learn noise",
                do="Use a student with the teacher's tokenizer",
            )
        )
    return objective.bind(*shapes, task.defaults())
