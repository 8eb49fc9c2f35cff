"""`Distiller`: student and projections as one module whose forward is the loss.

DDP and FSDP see every trained parameter in one forward. The teachers are held outside the module tree: they are in no
`parameters()`, no state dict and no optimiser, run in eval mode under no-grad, and their outputs carry no gradient.

Students that learn together (mutual learning) are peers: whole members of the module, each with projections of its own,
trained by the same optimiser and checkpointed, but never shipped. Each sees the others as teachers, without gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.cache import CachedTeacher, Recall
from potstill.checks import problem
from potstill.contrast import ContrastiveMemory
from potstill.errors import ModelError
from potstill.fusing import fusable
from potstill.kinds import LAYERLESS
from potstill.knowledge import TEACHERS, Knowledge, Needs, Observer, describe
from potstill.knowledge.taps import check_needs
from potstill.losses.fused import FactoredLogits, SparseLogits
from potstill.objective import BoundObjective, Objective, Parts, Scene, by_name
from potstill.projectors import projector
from potstill.tasks.base import Task
from potstill.terms import PEERS, BoundTerm
from potstill.training.combination import Combination
from potstill.training.precision import DTYPES, teacher_at

ROW = "row"
"""The column of a batch that numbers its rows in the data set, for terms that keep a memory."""


NOTHING = Needs()
LARGE_VOCABULARY = 8192
"""From here on logits are factored, so that their matrix is never formed."""
SPARE = 1024
"""By so many rows the vocabularies of one family may differ: Pythia's and Qwen's are padded by up to 384."""
Teacher: TypeAlias = PreTrainedModel | CachedTeacher
"""Who is learned from: a model that runs along, or one whose answers are read back from a cache."""


class Member(nn.Module):
    """One student with what trains beside it, and its objective bound to its own shape.

    Args:
        student: the model that is trained.
        objective: bound to this student and to all that it learns from.
        rows: of the data set, for memories.
        asked: what those who learn from this student need of it.
    """

    def __init__(self, student: PreTrainedModel, objective: BoundObjective, rows: int, asked: Needs = NOTHING) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        made = {name: projector(*sizes) for name, sizes in objective.projections().items()}
        made |= {name: joint.build() for name, joint in objective.joint_projections().items()}
        made |= {name: memory_of(term, widths, rows) for name, (term, widths) in objective.memories().items()}
        self.projectors = nn.ModuleDict(made)
        needs = objective.needs("student") | asked
        check_needs(student, needs)
        self._observe_student = Observer(student, needs)


class Distiller(Member):
    """The student, its projections, and the teachers to learn from (none where only labels teach).

    Args:
        student: the model that is trained, and saved as a plain model.
        objective: the terms; bound here to the shapes of all models.
        task: says what labels and masks mean.
        teacher: the model to learn from, or several by name; put into eval mode, and otherwise left as they were. A
            `CachedTeacher` takes the place of any.
        teacher_dtype: the precision that teachers run in, as copies where they have another: float32, bfloat16, or
            `torch.qint8` for int8 linear maps; None leaves them.
        peers: further students that learn along, from the same terms, each from all others too.
        combination: how several teachers are combined; without it, all count alike.
        rows: of the data set, for terms that keep a memory.
        own_columns: the teachers have another tokenizer, and read the columns ``teacher_*`` of a batch.

    Raises:
        RecipeError: the objective doesn't fit the models.
        ModelError: teacher and student don't share a vocabulary or are one object, what a term asks for can't be
            observed in one of them, or one of them can't read the task's batches as they are meant.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        objective: Objective,
        task: Task,
        teacher: Teacher | Mapping[str, Teacher] | None = None,
        *,
        teacher_dtype: torch.dtype | None = None,
        peers: Sequence[PreTrainedModel] = (),
        combination: Combination | None = None,
        rows: int = 0,
        own_columns: bool = False,
    ) -> None:
        teachers: dict[str, Teacher] = by_name(teacher)
        members = [student, *peers]
        for model in (*members, *teachers.values()):
            if not isinstance(model, CachedTeacher):  # it was looked at when its answers were kept
                task.check_model(model)
        others = [_others(members, model) for model in members]
        bound = [
            bind(objective, model, task, teachers, peers=beside, own_columns=own_columns)
            for model, beside in zip(members, others, strict=True)
        ]
        factored = factored_needs(bound, task, combination)
        learned = [  # from each, by the others
            factored | _needs_of(bound, f"{PEERS} {number}") for number in range(len(members))
        ]
        super().__init__(student, bound[0], rows, learned[0])
        self.task = task
        self.vocabulary = shared_vocabulary(bound)
        self.combination = combination
        along = zip(peers, bound[1:], learned[1:], strict=True)
        self.peers = nn.ModuleList(Member(model, own, rows, needs) for model, own, needs in along)
        routed = Needs(logits=combination is not None and combination.confident)
        # peers of another depth ask for other layers
        self.asked = {name: _needs_of(bound, name) | routed for name in teachers if bound[0].asked(name)}
        self.prefix = TEACHERS if own_columns else ""
        held: dict[str, Observer | Recall] = {}
        for name, needs in self.asked.items():
            model = teachers[name]
            if isinstance(model, CachedTeacher):
                held[name] = model.recall(name, needs, self.prefix)
                continue
            needs = factored | needs
            check_needs(model, needs)
            if teacher_dtype is not None:
                model = teacher_at(model, next(name for name, dtype in DTYPES.items() if dtype == teacher_dtype))
            model.eval()  # type: ignore[no-untyped-call]
            held[name] = Observer(model, needs, prefix=self.prefix)
        self.__dict__["_observe_teachers"] = held  # past nn.Module's registration: never submodules

    @property
    def teachers(self) -> dict[str, PreTrainedModel]:
        """The teachers that this objective asks and that run along, by name."""
        observers: dict[str, Observer | Recall] = self.__dict__["_observe_teachers"]
        return {name: one.model for name, one in observers.items() if isinstance(one, Observer)}

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The teacher that this objective asks, if any; the first of several."""
        return next(iter(self.teachers.values()), None)

    def to(self, *args: Any, **kwargs: Any) -> "Distiller":
        """Move the teachers along with the student, though they are no submodules; their precision stays their own."""
        super().to(*args, **kwargs)
        for teacher in self.teachers.values():
            teacher.to(self.student.device)  # type: ignore[arg-type]
        return self

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute the students' activations in the backward pass, as `Trainer` asks where its arguments say so."""
        for member in self.members:
            member.student.activation_checkpointing_enable(*args, **kwargs)

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that FSDP shards one by one."""
        return sorted({name for member in self.members for name in member.student._no_split_modules or ()})

    @property
    def members(self) -> list[Member]:
        """The student and its peers."""
        return [self, *self.peers]

    def teach(self, batch: Mapping[str, Tensor]) -> dict[str, Knowledge]:
        """What each teacher knows of a batch, without gradients."""
        observers: dict[str, Observer | Recall] = self.__dict__["_observe_teachers"]
        with torch.no_grad(), torch.autocast(self.student.device.type, enabled=False):
            return {name: self._shared(observer(batch), batch) for name, observer in observers.items()}

    def _shared(self, known: Knowledge, batch: Mapping[str, Tensor]) -> Knowledge:
        """What was observed, with logits of the tokens that all models have, or of the pixels that labels have."""
        if self.task.of_tokens and self.vocabulary is not None:
            return known.shared_logits(self.vocabulary)
        return self.task.compared(known, batch)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        counts: Mapping[str, Tensor | float] | None = None,
        progress: float = 0.0,
    ) -> Parts:
        """The loss of a micro-batch, with the denominators of the whole accumulation window in `counts`."""
        taught = self.teach(batch)
        seen = [self._shared(member._observe_student(batch), batch) for member in self.members]
        scene = Scene(
            labels=self.task.targets(batch),
            masks=self.task.masks(batch),
            counts=counts,
            progress=progress,
            rows=batch.get(ROW),
            pixels=batch.get("pixel_values"),
            influence=None if self.combination is None else self.combination.influence(taught, batch),
        )
        found = []
        for number, member in enumerate(self.members):
            others = {f"{PEERS} {i}": detached(known) for i, known in enumerate(seen) if i != number}
            own = replace(scene, modules=dict(member.projectors.items()))
            found.append(member.objective(seen[number], taught | others, own))
        if len(found) == 1:
            return found[0]
        learned = sum((parts.total for parts in found[1:]), torch.zeros_like(found[0].total))
        return Parts(found[0].total + learned, {**found[0].terms, PEERS: learned})


def memory_of(term: BoundTerm, widths: tuple[int, int], rows: int) -> ContrastiveMemory:
    """The memory that a contrastive term keeps, for a data set of so many rows; its draws follow PyTorch's seed."""
    assert term.memory is not None
    return ContrastiveMemory(*widths, rows, seed=torch.initial_seed() % 2**31, **term.memory)


def detached(known: Knowledge) -> Knowledge:
    """The same record without gradients, as a peer may be learned from."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, FactoredLogits | SparseLogits):
            return replace(value, **{f.name: cut(getattr(value, f.name)) for f in fields(value)})
        return {key: tensor.detach() for key, tensor in value.items()} if isinstance(value, Mapping) else value

    return Knowledge(**{f.name: cut(getattr(known, f.name)) for f in fields(Knowledge)})


def _same_vocabulary(student: int | None, teacher: int | None, spare: int) -> bool:
    """Whether two vocabularies differ by no more than the rows that one of them may be padded with."""
    if student is None or teacher is None:
        return student == teacher
    return abs(student - teacher) <= spare


def _others(members: Sequence[PreTrainedModel], own: PreTrainedModel) -> dict[str, PreTrainedModel]:
    return {f"{PEERS} {number}": model for number, model in enumerate(members) if model is not own}


def shared_vocabulary(objectives: Sequence[BoundObjective]) -> int | None:
    """The size of the smallest vocabulary of all models; None where no text comes in."""
    shapes = [shape for one in objectives for shape in (one.student, *one.teachers.values())]
    return min((shape.vocabulary for shape in shapes if shape.vocabulary is not None), default=None)


def factored_needs(objectives: Sequence[BoundObjective], task: Task, combination: Combination | None) -> Needs:
    """Whether logits are asked for in their factored form: where a vocabulary is large, and no term needs the matrix.

    A teacher that is chosen by how sure it is needs it too.
    """
    vocabulary = shared_vocabulary(objectives)
    if not task.of_tokens or vocabulary is None or vocabulary < LARGE_VOCABULARY:
        return NOTHING
    terms = [term for one in objectives for term in one.terms if term.kind in LAYERLESS]
    confident = combination is not None and combination.confident
    return Needs(factored=not confident and all(fusable(term) for term in terms))


def _needs_of(objectives: Sequence[BoundObjective], source: str) -> Needs:
    """What all of these objectives together ask of one that teaches."""
    found = NOTHING
    for objective in objectives:
        found |= objective.needs("teacher", source)
    return found


def bind(
    objective: Objective,
    student: PreTrainedModel,
    task: Task,
    teacher: Teacher | Mapping[str, Teacher] | None,
    *,
    peers: Mapping[str, PreTrainedModel] | None = None,
    own_columns: bool = False,
) -> BoundObjective:
    """An objective bound to its models and a task; refuses models that don't share a vocabulary, unless the teachers
    read columns of their own."""
    sources: dict[str, Teacher] = {**by_name(teacher), **(peers or {})}
    shapes = {
        name: model.shape if isinstance(model, CachedTeacher) else describe(model) for name, model in sources.items()
    }
    own = describe(student)
    for name, model in sources.items():
        if model is student:
            raise ModelError(
                problem(
                    "Teacher and student are one object",
                    follows="The teacher would change with the student, and teach it nothing",
                    do="Give a copy: build_student(teacher)",
                )
            )
        if own_columns and name not in (peers or {}):
            continue
        if not _same_vocabulary(own.vocabulary, shapes[name].vocabulary, SPARE if task.of_tokens else 0):
            raise ModelError(
                problem(
                    "Teacher and student have different vocabularies",
                    given=f"student {own.vocabulary} entries, {name} {shapes[name].vocabulary}",
                    follows="The same ids would mean different words to each, and the student would learn noise",
                    do="Use a student with the teacher's tokenizer, or give rows that hold both models' tokens",
                )
            )
    return objective.bind(own, shapes, task.defaults())
