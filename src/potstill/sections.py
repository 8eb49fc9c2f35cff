"""Sections of a recipe that say how a student is made. The rest of the recipe stands in `potstill.recipe`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

STRICT = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class WidthSection(BaseModel):
    """What to keep of the width, by importance on so many training rows; with 0 of them, by the weights alone."""

    model_config = STRICT

    hidden: Annotated[int, Ge(1)] | None = None
    intermediate: Annotated[int, Ge(1)] | None = None
    heads: Annotated[int, Ge(1)] | None = None
    calibration: Annotated[int, Ge(0)] = 256

    @model_validator(mode="after")
    def _something_cut(self) -> Self:
        if self.hidden is None and self.intermediate is None and self.heads is None:
            raise ValueError("A width needs one of 'hidden', 'intermediate' and 'heads'")
        return self


class VocabularySection(BaseModel):
    """Which tokens to keep: those that occur so often in the training rows, and what spells all others."""

    model_config = STRICT

    minimum_count: Annotated[int, Ge(1)] = 1


KEYS = {"teacher": ("layers", "width"), "config": ("config",), "checkpoint": ("model",)}


class StudentSection(BaseModel):
    """The model to make: from the teacher's layers, from a config, or from a checkpoint.

    `initialise` says whose weights the kept layers have: the teacher's as it was trained here, those of the model
    before it was (``pretrained``), or none (``random``).
    """

    model_config = STRICT

    origin: Literal["teacher", "config", "checkpoint"] = Field("teacher", alias="from")
    layers: int | list[int] | None = None
    rule: Literal["spread", "uniform", "first", "last"] = "spread"
    config: dict[str, Any] | None = None
    model: str | None = None
    initialise: Literal["teacher", "pretrained", "random"] = "teacher"
    width: WidthSection | None = None
    vocabulary: VocabularySection | None = None

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

    def inputs(self) -> dict[str, Any]:
        """What the student is made from, as plain data. Keys that came later are left out where they change nothing, so
        that the stages of older run folders stand."""
        found = self.model_dump(mode="json")
        unused = {"initialise": "teacher", "width": None, "vocabulary": None}
        return {key: value for key, value in found.items() if key not in unused or value != unused[key]}
