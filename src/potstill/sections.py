"""The sections of a recipe: unknown keys are errors, and what a section alone can say wrong is found here."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass as validated

from potstill.augment.image import Augmentation
from potstill.errors import ModelError, RecipeError
from potstill.objective import Objective
from potstill.students import configuration, stands_alone
from potstill.terms import PEERS, TEACHER, Term, check_term
from potstill.training.settings import RefineSettings, TrainSettings

STRICT = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
if TYPE_CHECKING:
    from potstill.augment.image import Augmentation as Augment
    from potstill.training.settings import RefineSettings as Refine
    from potstill.training.settings import TrainSettings as Train
else:
    Augment = validated(Augmentation, config=STRICT)
    Train = validated(TrainSettings, config=STRICT)
    Refine = validated(RefineSettings, config=STRICT)
Share = Annotated[float, Gt(0), Lt(1)]
Channel = Annotated[int, Ge(0), Le(255)]
STUDENTS = ("student", "baseline", "pretrained_baseline")  # who else a run trains: no names of teachers


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, and nothing changes once loaded."""

    model_config = STRICT


class SourceSection(Section):
    """Where rows come from: a packaged sample, a folder or a hub id, or files."""

    name: str | None = None
    config: str | None = None
    revision: str | None = None
    files: dict[str, str | list[str]] | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.files is None):
            raise ValueError("Give either 'name' (a packaged sample, a folder or a hub id) or 'files', one of both")
        return self


class ColumnsSection(Section):
    """Which columns hold what; those left out are guessed, and the guess is printed."""

    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | list[str] | None = None
    label_map: str | None = None


class DataSection(SourceSection):
    """The labelled rows, and rows without labels for the teacher to label.

    Texts are cut to `max_length` tokens. Images are read as each model's image processor has it, unless `image_size`
    says to which size (one number for a square, or height and width) all of them are resized.

    `augment` changes training images; validation and test are never changed.

    For label maps, `palette` has a colour for each id from 0, `void` lists the ids that mean no class,
    `class_weights` weighs the classes in the loss of labels, and `protocol` says at which size logits and labels are
    compared: ``full``, or ``quarter`` as TransKD has it.
    """

    columns: ColumnsSection = ColumnsSection()
    problem: Literal["single_label", "multi_label", "regression"] | None = None
    names: list[str] | None = None
    palette: list[tuple[Channel, Channel, Channel]] | None = None
    void: list[Annotated[int, Ge(0)]] | None = None
    class_weights: Literal["frequency"] | list[Annotated[float, Ge(0)]] | None = None
    protocol: Literal["full", "quarter"] = "full"
    unlabelled: SourceSection | None = None
    max_length: Annotated[int, Ge(2)] = 128
    image_size: Annotated[int, Ge(1)] | tuple[Annotated[int, Ge(1)], Annotated[int, Ge(1)]] | None = None
    augment: Augment | None = None
    limit: Annotated[int, Ge(1)] | None = None
    validation: Share = 0.1
    test: Annotated[float, Ge(0), Lt(1)] = 0.1

    @property
    def called(self) -> str:
        """What the rows are, in a word: a sample's or hub id's name, or that of the folder they lie in."""
        if self.name is None:
            return "files"
        return Path(self.name).name if Path(self.name).is_dir() else self.name


def _buildable(config: dict[str, Any] | str) -> dict[str, Any] | str:
    if isinstance(config, dict) and stands_alone(config):
        try:
            configuration(config)
        except ModelError as error:  # so that pydantic gathers it with the others
            raise ValueError(str(error)) from None
    return config


def architecture_named(config: Mapping[str, Any] | str | None) -> str:
    """What a model of a config is, in a few words."""
    if isinstance(config, str):
        return f"a new model like {config}"
    return f"a new {config['model_type']}" if config and "model_type" in config else "a student of another config"


Config = Annotated[dict[str, Any] | str, AfterValidator(_buildable)]
"""A configuration of its own, with a `model_type`; the path or hub id of one; or what differs from the teacher's."""


class FurtherTeacherSection(Section):
    """One more teacher. Its tokenizer (or image processor) is the first one's."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    model: str
    train: Train | None = None
    seed: int = 1
    weight: Annotated[float, Gt(0)] = 1.0

    @property
    def called(self) -> str:
        """What the teacher is, in a few words."""
        return self.model


class TeacherSection(Section):
    """The model to learn from; trained here where `train` is given, else taken as it is.

    With a `config` in place of a `model` (its own, or the path of one) it starts from random weights.

    `precision` is what the teachers run in while they teach: ``auto`` is bfloat16 where the student trains in it.
    Another than float32 is taken only where its answers on training rows stay near those of float32.

    With `others`, terms that name no teacher learn from all of them: by `weight`, or by `route` from one for each row,
    the surest (``confident``) or the one whose name stands in a column of the data.
    """

    model: str | None = None
    config: Config | None = None
    train: Train | None = None
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    trust_remote_code: bool = False
    weight: Annotated[float, Gt(0)] = 1.0
    others: list[FurtherTeacherSection] = []
    route: str | None = None

    @property
    def called(self) -> str:
        """What the teacher is, in a few words."""
        return self.model or architecture_named(self.config)

    @model_validator(mode="after")
    def _model_or_config(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError("Give either 'model' or 'config', one of both")
        if isinstance(self.config, Mapping) and not stands_alone(self.config):
            raise ValueError("A teacher's config stands alone, and needs the key 'model_type', such as vit")
        if self.config is not None and self.train is None:
            raise ValueError("A teacher from a config knows nothing yet: train it here, with 'train'")
        return self

    @model_validator(mode="after")
    def _several(self) -> Self:
        names = [TEACHER, *(other.name for other in self.others)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or any(name.startswith(PEERS) or name in STUDENTS for name in names):
            raise ValueError(
                f"Each of the others needs a name of its own, and none of teacher, {', '.join((PEERS, *STUDENTS))}: "
                f"{names[1:]}"
            )
        made = [(self.model, self.train, 0), *((one.model, one.train, one.seed) for one in self.others)]
        if any(one[1] is not None and made.count(one) > 1 for one in made):
            raise ValueError(
                "Two teachers with one model, one 'train' and one 'seed' would be the same: change a 'seed'"
            )
        if not self.others and (self.route is not None or self.weight != 1.0):
            raise ValueError("'route' and 'weight' say how several teachers are combined, and there are no 'others'")
        return self


class WidthSection(Section):
    """What to keep of the width, by importance on so many training rows; with 0 of them, by the weights alone."""

    hidden: Annotated[int, Ge(1)] | None = None
    intermediate: Annotated[int, Ge(1)] | None = None
    heads: Annotated[int, Ge(1)] | None = None
    calibration: Annotated[int, Ge(0)] = 256

    @model_validator(mode="after")
    def _something_cut(self) -> Self:
        if self.hidden is None and self.intermediate is None and self.heads is None:
            raise ValueError("A width needs one of 'hidden', 'intermediate' and 'heads'")
        return self


class VocabularySection(Section):
    """Which tokens to keep: those that occur so often in the training rows, and what spells all others."""

    minimum_count: Annotated[int, Ge(1)] = 1


KEYS = {"teacher": ("layers", "width"), "config": ("config",), "checkpoint": ("model",)}


class StudentSection(Section):
    """The model to make: from the teacher's layers, from a config, or from a checkpoint. What it is made from follows
    from its other keys where `from` isn't written.

    `initialise` says whose weights the kept layers have: the teacher's as it was trained here, those of the model
    before it was (``pretrained``), or none (``random``).
    """

    origin: Literal["teacher", "config", "checkpoint"] = Field("teacher", alias="from")
    layers: int | list[int] | None = None
    rule: Literal["spread", "uniform", "first", "last"] = "spread"
    config: Config | None = None
    model: str | None = None
    initialise: Literal["teacher", "pretrained", "random"] = "teacher"
    width: WidthSection | None = None
    vocabulary: VocabularySection | None = None

    @model_validator(mode="before")
    @classmethod
    def _origin_of_its_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "from" in data or "origin" in data:
            return data
        origins = [
            origin for origin, key in (("config", "config"), ("checkpoint", "model")) if data.get(key) is not None
        ]
        return {**data, "from": origins[0]} if len(origins) == 1 and data.get("layers") is None else data

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _data_is_a_word(cls, value: Any) -> Any:
        if value is None or isinstance(value, Mapping | VocabularySection):
            return value
        if value != "data":
            raise ValueError("Write vocabulary: data, or vocabulary: {minimum_count: 2}")
        return {}

    @model_validator(mode="after")
    def _fitting_keys(self) -> Self:
        if self.rule != "spread" and not isinstance(self.layers, int):
            raise ValueError("'rule' says which layers a count keeps, and goes with a number of 'layers' only")
        takes = KEYS[self.origin]
        for key in ("layers", "width", "config", "model"):
            if getattr(self, key) is not None and key not in takes:
                raise ValueError(f"'{key}' doesn't go with from: {self.origin}, which takes {', '.join(takes)}")
        if all(getattr(self, key) is None for key in takes) and (self.origin != "teacher" or self.vocabulary is None):
            raise ValueError(f"from: {self.origin} needs {' or '.join(repr(key) for key in takes)}")
        if self.initialise != "teacher" and self.origin != "teacher":
            own = "is always random" if self.origin == "config" else "has weights of its own"
            raise ValueError(f"'initialise' goes with from: teacher; a student from: {self.origin} {own}")
        return self

    @property
    def path(self) -> str | None:
        """The checkpoint, or whose architecture it has, where one is named."""
        return self.config if isinstance(self.config, str) else self.model

    def inputs(self) -> dict[str, Any]:
        """What the student is made from, as plain data. Keys that came later are left out where they change nothing, so
        that the stages of older run folders stand."""
        found = self.model_dump(mode="json")
        unused = {"initialise": "teacher", "width": None, "vocabulary": None}
        return {key: value for key, value in found.items() if key not in unused or value != unused[key]}


class TermSection(BaseModel):
    """One term of an objective; keys beyond these are arguments of its loss."""

    model_config = ConfigDict(extra="allow", frozen=True)

    knowledge: str
    loss: str | None = None
    layers: str | dict[Any, Any] | list[Any] | None = None
    weight: float | dict[str, Any] = 1.0
    temperature: float | dict[str, Any] | None = None
    project: str = "auto"
    share: bool = False
    embeddings: bool | None = None
    pool: str | None = None
    stage_weights: list[float] | None = None
    teacher: str | None = None
    shift: bool = False
    classifier: Literal["class", "distillation"] | None = None

    @field_validator("layers", mode="before")
    @classmethod
    def _numbers_again(cls, value: Any) -> Any:
        """Layer numbers that JSON made texts of are numbers again."""
        if not isinstance(value, Mapping):
            return value
        return {int(key) if isinstance(key, str) and key.isdigit() else key: one for key, one in value.items()}

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        try:
            check_term(self.term())
        except RecipeError as error:  # so that pydantic gathers it with the others
            raise ValueError(str(error)) from None
        return self

    def term(self) -> Term:
        """The term as the objective takes it."""
        own = {f.name: getattr(self, f.name) for f in fields(Term) if f.name != "options"}
        return Term(**own, options=self.model_extra or {})


class StageSection(Section):
    """One stage of distillation: what to learn, and how long.

    `freeze` names parts of the student that don't learn in this stage: layers by number, ``embeddings``, or ``head``.
    `mutual` lists further students that learn along with this one, each from the same terms and from the others.
    """

    terms: Annotated[list[TermSection], Field(min_length=1)]
    train: Train = Train()
    freeze: list[Annotated[int, Ge(0)] | Literal["embeddings", "head"]] = []
    mutual: list[StudentSection] = []

    def objective(self) -> Objective:
        """The objective of this stage."""
        return Objective([term.term() for term in self.terms])


class AssistantSection(Section):
    """A teacher assistant: a student of the teacher that teaches the next one in the chain. Its terms are the recipe's
    own where it has none."""

    student: StudentSection
    distill: Annotated[list[StageSection], Field(min_length=1)] | None = None


class RefineSection(Section):
    """Further training on the labels alone, with early stopping and the best checkpoint kept."""

    train: Refine = Refine()


class CacheSection(Section):
    """Whether the teachers' knowledge is kept on disk: by itself where it pays (``auto``), ``always``, ``never``, or
    ``only``: read from what is there, and refused where anything is missing.

    `folder` is that of the run where none is named. With `precision: int8` each vector has a scale.
    """

    use: Literal["auto", "always", "never", "only"] = "auto"
    folder: str | None = None
    precision: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    limit_gb: Annotated[float, Gt(0)] = 20.0


class EvaluateSection(Section):
    """What is compared, and how often."""

    baseline: bool = True
    pretrained_baseline: bool = True
    seeds: Annotated[int, Ge(1)] = 1
    cost: bool = True
    attention_similarity: bool = False
    examples: Annotated[int, Ge(0)] = 8


class ExportSection(Section):
    """The files to ship beside the student's folder."""

    formats: list[Literal["onnx", "onnx-int8"]] = ["onnx", "onnx-int8"]
