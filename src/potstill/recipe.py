"""The recipe: one YAML file, one section a stage. Loading it finds every problem at once, before anything is trained.

YAML is only data here: it is read by `yaml.safe_load`, and names in it are looked up in tables, never imported.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from annotated_types import Ge
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from potstill import losses
from potstill.checks import nearest, problem, unknown_name
from potstill.errors import RecipeError
from potstill.kinds import takes
from potstill.sections import (
    AssistantSection,
    CacheSection,
    DataSection,
    EvaluateSection,
    ExportSection,
    RefineSection,
    Section,
    StageSection,
    StudentSection,
    TeacherSection,
)
from potstill.terms import PEERS, TEACHER, Term
from potstill.training.combination import CONFIDENT, Combination
from potstill.training.settings import TrainSettings

OF_TEXTS = ("text_classification",)
TEXT_KEYS = ("data.columns.text", "data.columns.text_pair", "data.max_length", "student.vocabulary")
IMAGE_KEYS = ("data.columns.image", "data.image_size", "data.augment")
OF_MAPS = ("semantic_segmentation",)
MAP_KEYS = ("data.columns.label_map", "data.palette", "data.void", "data.class_weights", "data.protocol")
LABEL_KEYS = ("data.columns.label", "data.problem", "teacher.route")  # of rows with one label each
SCALARS = ("int", "float", "str", "constrained-int")


class Recipe(Section):
    """A whole recipe. `load_recipe` makes one from a file, a name or a mapping."""

    name: str = "recipe"
    task: Literal["text_classification", "image_classification", "semantic_segmentation"]
    seed: int = 0
    data: DataSection
    teacher: TeacherSection
    student: StudentSection
    assistants: list[AssistantSection] = Field(default_factory=list)
    generations: Annotated[int, Ge(1)] = 1
    distill: Annotated[list[StageSection], Field(min_length=1)]
    refine: RefineSection | None = None
    cache: CacheSection = CacheSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _known_teachers(self) -> Self:
        names = [TEACHER, *(other.name for other in self.teacher.others)]
        stages = [*self.distill, *(stage for one in self.assistants for stage in one.distill or ())]
        wrong = []
        for stage in stages:
            known = [*names, *([PEERS] if stage.mutual else [])]
            asked = [term.teacher for term in stage.terms if term.teacher is not None]
            wrong += [unknown_name("teacher", name, known) for name in asked if name not in known]
            if stage.mutual and PEERS not in asked:
                wrong.append("Students that learn together need a term with teacher: peers.")
        if wrong:
            raise ValueError(" ".join(dict.fromkeys(wrong)))
        if self.teacher.route not in (None, CONFIDENT) and self.data.unlabelled is not None:
            raise ValueError("Rows without labels have no column that routes them to a teacher; set route: confident")
        if (self.assistants or self.generations > 1) and self.teacher.others:
            raise ValueError("A chain of assistants or generations starts from one teacher; leave out teacher.others")
        return self

    @model_validator(mode="after")
    def _fitting_rows(self) -> Self:
        of_rows: tuple[str, ...] = IMAGE_KEYS if self.task in OF_TEXTS else TEXT_KEYS
        of_others = (*of_rows, *(LABEL_KEYS if self.task in OF_MAPS else MAP_KEYS))
        wrong = [key for key in of_others if _differs(self, key.split("."))]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} mean nothing for {self.task}. Leave them out")
        return self

    @model_validator(mode="after")
    def _labels_that_can_be_mixed(self) -> Self:
        if self.data.augment is None or not self.data.augment.mixes:
            return self
        if self.task in OF_MAPS:
            raise ValueError("data.augment mixes rows, and a pixel has one class: leave out mixup and cutmix")
        stages = [*self.distill, *(stage for one in self.assistants for stage in one.distill or ())]
        terms = [term.term() for stage in stages for term in stage.terms]
        wrong = sorted({str(term.loss or "shift") for term in terms if term.shift or _of_one_class(term)})
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} asks for the one right class of a row, and data.augment mixes rows of several: "
                "leave out mixup and cutmix, or use a loss without labels, such as kl_divergence"
            )
        return self

    @model_validator(mode="after")
    def _answers_that_can_be_kept(self) -> Self:
        made = self.data.augment
        if self.cache.use in ("always", "only") and made is not None and not made.fixed:
            raise ValueError(
                f"cache.use: {self.cache.use} keeps a teacher's answers, and data.augment never shows it the same "
                "images again. Set data.augment.views to a number of fixed views, without mixup and cutmix; or "
                "cache.use=auto"
            )
        return self

    @model_validator(mode="after")
    def _fitting_students(self) -> Self:
        chain = [one.student for one in self.assistants]
        stages = [*self.distill, *(stage for one in self.assistants for stage in one.distill or ())]
        further = [*chain, *(peer for stage in stages for peer in stage.mutual)]
        if any(one.initialise == "pretrained" for one in (self.student, *further)) and self.teacher.train is None:
            raise ValueError(
                "initialise: pretrained is the model before it is trained here, and this teacher isn't: it is taken as "
                "it is (no teacher.train). Leave out initialise"
            )
        if any(one.initialise == "pretrained" for one in (self.student, *further)) and self.teacher.model is None:
            raise ValueError("initialise: pretrained needs a pretrained model, and the teacher is one from a config")
        if self.task in OF_TEXTS and isinstance(self.teacher.config, Mapping):
            raise ValueError(
                "A teacher of texts needs a tokenizer, and a config of its own has none: give teacher.config as the "
                "path or hub id of a model whose architecture and tokenizer it takes"
            )
        if any(one.vocabulary is not None for one in further):
            raise ValueError(
                "'vocabulary' is written in 'student' alone: assistants and students that learn along have the same"
            )
        return self

    @property
    def chain(self) -> list[AssistantSection]:
        """Who teaches whom between teacher and student: the assistants, then the student's earlier generations."""
        return [*self.assistants, *[AssistantSection(student=self.student)] * (self.generations - 1)]

    @property
    def taught_first(self) -> list[StageSection]:
        """The stages of whoever learns from the recipe's teachers: the first of the chain, or the student."""
        first = next(iter(self.chain), None)
        return self.distill if first is None or first.distill is None else first.distill

    @property
    def combination(self) -> Combination | None:
        """How several teachers are combined; None for one."""
        if not self.teacher.others:
            return None
        weights = {TEACHER: self.teacher.weight, **{other.name: other.weight for other in self.teacher.others}}
        return Combination(weights, self.teacher.route)

    @property
    def teachers_trainings(self) -> dict[str, TrainSettings | None]:
        """How each teacher is trained here, by name; None where it is taken as it is."""
        return {TEACHER: self.teacher.train, **{other.name: other.train for other in self.teacher.others}}

    @property
    def trainings(self) -> list[TrainSettings]:
        """The settings of every stage of training."""
        stages = [*self.distill, *(stage for one in self.chain for stage in one.distill or ())]
        found = [*self.teachers_trainings.values()]
        found += [stage.train for stage in stages] + ([] if self.refine is None else [self.refine.train])
        return [one for one in found if one is not None]

    @property
    def roles(self) -> list[str]:
        """Who is trained: the student first, so that a recipe that can't be trained fails before its baselines."""
        found = ["student"]
        if self.evaluate.baseline:
            found.append("baseline")
            student = self.student  # with other weights than the teacher's, its baseline is that cut already
            pretrained = self.teacher.train and self.teacher.model is not None
            cut_here = pretrained and student.origin == "teacher" and student.initialise == "teacher"
            if self.evaluate.pretrained_baseline and cut_here:
                found.append("pretrained_baseline")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, every default written out."""
        return TypeAdapter(Recipe).dump_python(self, mode="json", by_alias=True)  # type: ignore[no-any-return]

    def as_yaml(self) -> str:
        """The recipe as resolved, in YAML."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)


def _differs(section: BaseModel, path: Sequence[str]) -> bool:
    """Whether the value at a path of keys is another than where nothing is written."""
    value = getattr(section, path[0])
    if len(path) > 1:
        return _differs(value, path[1:])
    return bool(value != type(section).model_fields[path[0]].default)


def _of_one_class(term: Term) -> bool:
    """Whether a term on outputs asks for the right class of a row."""
    loss = getattr(losses, str(term.loss), None)
    return term.knowledge != "labels" and loss is not None and "labels" in takes(loss)


def packaged_recipes() -> dict[str, Path]:
    """The recipes that ship with potstill, by name."""
    folder = Path(str(resources.files("potstill") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """A validated recipe.

    Args:
        source: the name of a packaged recipe, a path to a YAML file, or the recipe as data.
        overrides: ``key=value`` strings such as ``distill.0.train.epochs=5``; values are read as YAML.

    Raises:
        RecipeError: with every problem found, one a line.
    """
    if isinstance(source, Recipe):
        if not overrides:
            return source
        source = source.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(source, Mapping):
        name, data = "recipe", _copy(source)
    else:
        path = _find(source)
        name, data = path.stem, _read(path)
    problems = [message for override in overrides if (message := _override(data, override))]
    try:
        recipe = Recipe.model_validate({"name": name, **data})
    except ValidationError as error:
        problems += [_message(dict(found)) for found in error.errors()]
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))
    return recipe


def _copy(data: Any) -> Any:
    """Mappings and lists copied, so that overrides change nothing of the caller's."""
    if isinstance(data, Mapping):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(value) for value in data] if isinstance(data, list | tuple) else data


def _find(source: str | Path) -> Path:
    known = packaged_recipes()
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in known:
        return known[str(source)]
    raise RecipeError(
        problem(
            f"There is no recipe '{source}': neither a file nor a packaged recipe.{nearest(str(source), known)}",
            do=f"Packaged: {', '.join(known)}. `potstill recipes` lists them",
        )
    )


class _PlainLoader(yaml.SafeLoader):
    """YAML that is only data, and in which no key stands twice: the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As `SafeLoader` does, but a repeated key is an error that names its line."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.YAMLError(f"the key '{key.value}' stands twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(problem(f"{path} is no readable YAML", given=" ".join(str(error).split()))) from None
    if not isinstance(data, dict):
        raise RecipeError(problem(f"{path} holds no recipe", given=type(data).__name__, do="Write keys and values"))
    return data


def _override(data: dict[str, Any], override: str) -> str | None:
    """Set one key of the data in place; a message where that is impossible."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        return problem("An override is written key=value", given=f"'{override}'", do="For example evaluate.seeds=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return problem(f"The value of '{key}' is no readable YAML", given=f"'{text}'")
    node: Any = data
    *parents, last = key.split(".")
    for name in parents:
        node = _child(node, name)
        if node is None:
            return problem(
                f"There is no '{key}' to override: '{name}' leads nowhere", do="Write the section in the recipe"
            )
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            return problem(f"There is no '{key}' to override", given=f"a list of {len(node)}", do="Count from 0")
        node[int(last)] = value
    else:
        node[last] = value
    return None


def _child(node: Any, name: str) -> Any:
    """The section below a section, made where it isn't there yet."""
    if isinstance(node, list):
        return node[int(name)] if name.isdigit() and int(name) < len(node) else None
    if node.get(name) is None:
        node[name] = {}
    child = node[name]
    return child if isinstance(child, dict | list) else None


def _message(found: dict[str, Any]) -> str:
    """One validation error in plain words, with the nearest known key."""
    location = [
        part for part in found["loc"] if part not in SCALARS and "[" not in str(part)
    ]  # not the arms of a union
    where = ".".join(str(part) for part in location)
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        section = ".".join(map(str, location[:-1])) or "recipe"
        return f"{section}: {unknown_name('key', str(location[-1]), _keys(location[:-1]))}"
    text = found["msg"].removeprefix("Value error, ").rstrip(".")
    if found["type"] == "missing":
        return f"{where}: this key is required.{_misspelt(location, found['input'])}"
    given = "" if found["type"] == "value_error" or isinstance(found["input"], dict) else f" Got: {found['input']!r}."
    return f"{where}: {text}.{given}" if where else f"{text}.{given}"


def _misspelt(location: Sequence[Any], section: Any) -> str:
    """The given key that may be the missing one, misspelt: of a term, which takes any key, no other error says it."""
    if not isinstance(section, Mapping):
        return ""
    close = nearest(str(location[-1]), [str(key) for key in section if key not in _keys(location[:-1])])
    return close.replace("Did you mean", "Was it meant by")


def _keys(location: Sequence[Any]) -> list[str]:
    """The keys that a section knows, found by walking the types of the recipe."""
    section: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = {name: annotation for name, annotation in _fields(section)}.get(str(part))
        section = next(_sections(annotation), None)
        if section is None:
            return []
    return [name for name, _ in _fields(section)]


def _fields(section: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(section):
        yield from ((f.name, f.type) for f in fields(section))
    else:
        yield from ((info.alias or name, info.annotation) for name, info in section.model_fields.items())


def _sections(annotation: Any) -> Iterator[Any]:
    """The sections in an annotation, whatever unions and lists stand around them."""
    if isinstance(annotation, type) and (is_dataclass(annotation) or issubclass(annotation, BaseModel)):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
