"""The recipe: one YAML file, one section a stage. Loading it finds every problem at once, before anything is trained.

YAML is only data here: it is read by `yaml.safe_load`, and names in it are looked up in tables, never imported.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

import yaml
from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as validated

from potstill.checks import nearest, problem, unknown_name
from potstill.errors import RecipeError
from potstill.objective import Objective, Term, check_term
from potstill.sections import STRICT, StudentSection
from potstill.terms import PEERS, TEACHER
from potstill.training.combination import CONFIDENT, Combination
from potstill.training.settings import RefineSettings, TrainSettings

if TYPE_CHECKING:
    from potstill.training.settings import RefineSettings as Refine
    from potstill.training.settings import TrainSettings as Train
else:
    Train = validated(TrainSettings, config=STRICT)
    Refine = validated(RefineSettings, config=STRICT)
SCALARS = ("int", "float", "str")
Share = Annotated[float, Gt(0), Lt(1)]


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
    label: str | list[str] | None = None


class DataSection(SourceSection):
    """The labelled rows, and rows without labels for the teacher to label."""

    columns: ColumnsSection = ColumnsSection()
    problem: Literal["single_label", "multi_label", "regression"] | None = None
    names: list[str] | None = None
    unlabelled: SourceSection | None = None
    max_length: Annotated[int, Ge(2)] = 128
    limit: Annotated[int, Ge(1)] | None = None
    validation: Share = 0.1
    test: Share = 0.1


class FurtherTeacherSection(Section):
    """One more teacher. Its tokenizer is the first one's."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
    model: str
    train: Train | None = None
    seed: int = 1
    weight: Annotated[float, Gt(0)] = 1.0


class TeacherSection(Section):
    """The model to learn from; trained here where `train` is given, else taken as it is.

    With `others`, terms that name no teacher learn from all of them: by `weight`, or by `route` from one for each row,
    the surest (``confident``) or the one whose name stands in a column of the data.
    """

    model: str
    train: Train | None = None
    trust_remote_code: bool = False
    weight: Annotated[float, Gt(0)] = 1.0
    others: list[FurtherTeacherSection] = []
    route: str | None = None

    @model_validator(mode="after")
    def _several(self) -> Self:
        names = [TEACHER, *(other.name for other in self.others)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or any(name.startswith(PEERS) for name in names):
            raise ValueError(
                f"Each of the others needs a name of its own, which is neither 'teacher' nor 'peers': {names[1:]}"
            )
        if not self.others and (self.route is not None or self.weight != 1.0):
            raise ValueError("'route' and 'weight' say how several teachers are combined, and there are no 'others'")
        return self


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
    teacher: str | None = None
    shift: bool = False

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


class Recipe(Section):
    """A whole recipe. `load_recipe` makes one from a file, a name or a mapping."""

    name: str = "recipe"
    task: Literal["text_classification"]
    seed: int = 0
    data: DataSection
    teacher: TeacherSection
    student: StudentSection
    assistants: list[AssistantSection] = []
    generations: Annotated[int, Ge(1)] = 1
    distill: Annotated[list[StageSection], Field(min_length=1)]
    refine: RefineSection | None = None
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
    def _fitting_students(self) -> Self:
        chain = [one.student for one in self.assistants]
        stages = [*self.distill, *(stage for one in self.assistants for stage in one.distill or ())]
        further = [*chain, *(peer for stage in stages for peer in stage.mutual)]
        if any(one.initialise == "pretrained" for one in (self.student, *further)) and self.teacher.train is None:
            raise ValueError(
                "initialise: pretrained is the model before it is trained here, and this teacher isn't: it is taken as "
                "it is (no teacher.train). Leave out initialise"
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
    def combination(self) -> Combination | None:
        """How several teachers are combined; None for one."""
        if not self.teacher.others:
            return None
        weights = {TEACHER: self.teacher.weight, **{other.name: other.weight for other in self.teacher.others}}
        return Combination(weights, self.teacher.route)

    @property
    def roles(self) -> list[str]:
        """Who is trained: the student first, so that a recipe that can't be trained fails before its baselines."""
        found = ["student"]
        if self.evaluate.baseline:
            found.append("baseline")
            student = self.student  # with other weights than the teacher's, its baseline is that cut already
            cut_here = self.teacher.train and student.origin == "teacher" and student.initialise == "teacher"
            if self.evaluate.pretrained_baseline and cut_here:
                found.append("pretrained_baseline")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data, every default written out."""
        return TypeAdapter(Recipe).dump_python(self, mode="json", by_alias=True)  # type: ignore[no-any-return]

    def as_yaml(self) -> str:
        """The recipe as resolved, in YAML."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)


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
    return f"{where}: {text}.{given}"


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
