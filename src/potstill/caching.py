"""Whether a teacher's knowledge is kept on disk in a run, and the keeping of it.

Decisions:
- It pays where the teacher would see the rows more than once: in several epochs, stages, seeds, or cells of a
  comparison. It is kept then, unless it takes more room than the recipe allows or the disk has.
- Runs that stand beside each other keep it in one place, and all that any of them asks at once: the teacher then sees
  each row once for all of them.
- Of several ranks each keeps its share of the rows. What all of them must agree on (whether it is kept, whether its
  fidelity is still to be measured) is decided by rank 0.
- Only the recipe's teachers are kept. Assistants and earlier generations teach one student each.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from potstill import ranks
from potstill.cache import (
    Cache,
    CachedTeacher,
    Estimate,
    Identity,
    Storage,
    estimate,
    find,
    measure_and_keep,
    nearest,
    row_keys,
    teacher_digest,
    tokenizer_digest,
    write_cache,
)
from potstill.checks import problem
from potstill.errors import CacheError, ModelError
from potstill.evaluation.predict import fastest_device
from potstill.knowledge import TEACHERS, Needs, Observer
from potstill.preflight import Preflight
from potstill.progress import Progress, Silent
from potstill.sections import CacheSection
from potstill.training import TrainSettings
from potstill.training.precision import teacher_at
from potstill.training.stages import total_steps
from potstill.workbench import Workbench

ENOUGH_PASSES = 1.5
ALWAYS, NEVER, ONLY = "always", "never", "only"


@dataclass(frozen=True)
class Shared:
    """What runs beside each other have in common: where knowledge is kept, how many they are, what all of them ask."""

    root: Path
    runs: int = 1
    asked: Mapping[str, Needs] = field(default_factory=dict)  # by teacher


@dataclass(frozen=True)
class Decision:
    """Whether it is kept, why, and what is kept."""

    keep: bool
    why: str
    needs: Needs
    estimate: Estimate | None = None


class Caching:
    """The kept knowledge of a run's teachers.

    Args:
        bench: the rows, as everyone reads them.
        asked: by teacher, what those ask who learn from it.
        home: the run folder; knowledge is kept in its folder ``cache``, unless the recipe or `shared` has another.
        progress: told what is decided and done.
        shared: with runs beside this one.
    """

    def __init__(
        self,
        bench: Workbench,
        asked: Mapping[str, Needs],
        home: Path,
        progress: Progress,
        shared: Shared | None = None,
    ) -> None:
        self.bench = bench
        self.section: CacheSection = bench.recipe.cache
        self.asked = asked
        self.progress = progress
        self.shared = shared or Shared(home / "cache")
        self.root = Path(self.section.folder) if self.section.folder else self.shared.root
        self._kept: dict[str, tuple[CachedTeacher | None, dict[str, Any] | None]] = {}

    @property
    def records(self) -> dict[str, Any]:
        """By teacher, what is kept of it and what that took: for the report."""
        return {name: record for name, (_, record) in self._kept.items() if record is not None}

    def passes(self, trainings: Sequence[TrainSettings]) -> float:
        """How often all seeds of a run go through the rows in these stages."""
        steps = [total_steps(settings, len(self.rows)) for settings in trainings]
        return self.bench.recipe.evaluate.seeds * sum(taken / epoch for taken, epoch in steps)

    def of(self, name: str, teacher: PreTrainedModel, passes: float, runs_in: str) -> CachedTeacher | None:
        """The teacher as it is remembered; None where it is better let run along.

        Args:
            name: of the teacher.
            teacher: as it was loaded.
            passes: how often one run goes through the rows with it.
            runs_in: the precision that it runs in.
        """
        if name not in self._kept:
            self._kept[name] = self._decide_and_keep(name, teacher, passes * self.shared.runs, runs_in)
        return self._kept[name][0]

    def _decide_and_keep(
        self, name: str, teacher: PreTrainedModel, passes: float, runs_in: str
    ) -> tuple[CachedTeacher | None, dict[str, Any] | None]:
        if self.section.use == NEVER or name not in self.asked:
            return None, None
        decision = ranks.on_main(lambda: self.decide(name, teacher, passes, runs_in))
        self.progress.say(f"{name}: {decision.why}")
        if not decision.keep:
            return None, None
        return self.keep(name, teacher, decision.needs, runs_in, passes)

    def decide(self, name: str, teacher: PreTrainedModel, passes: float, runs_in: str) -> Decision:
        """Whether a teacher's knowledge is kept."""
        own, rows = self.asked[name], self.rows
        if changing := self._changing():
            return Decision(False, f"it runs along: {changing}", own)
        together = own | self.shared.asked.get(name, own)
        if self.section.use == ONLY:
            return Decision(True, f"its answers are read from {self.root}", own)
        if self.section.use != ALWAYS and passes < ENOUGH_PASSES:
            why = "it runs along, since it sees every row once; kept answers would save nothing"
            return Decision(False, why, own)
        existing = find(self.root, self.identity(teacher, own, runs_in))
        if existing is not None and not len(existing.missing(row_keys(rows, self.prefix))):
            return Decision(True, f"its answers are read from {existing.folder}", own)
        free = shutil.disk_usage(_existing(self.root)).free
        room = min(self.section.limit_gb * 1e9, 0.9 * free)
        why = ""
        for needs in dict.fromkeys((together, own)):
            try:
                made = self.estimated(teacher, needs)
            except ModelError as error:
                why = str(error)
                continue
            size = f"{made.bytes / 1e9:.2f} GB"
            if made.bytes <= room or self.section.use == ALWAYS:
                text = f"its answers are kept on disk, {size}, since it would see the rows {passes:.3g} times"
                return Decision(True, text, needs, made)
            why = f"kept answers would take {size}, and {room / 1e9:.2f} GB are allowed (cache.limit_gb) and free"
        if self.section.use == ALWAYS:
            raise _not_kept(name, why)
        return Decision(False, f"it runs along: {why}", own)

    def keep(
        self, name: str, teacher: PreTrainedModel, needs: Needs, runs_in: str, passes: float = 1, part: Any = (0, 1)
    ) -> tuple[CachedTeacher, dict[str, Any]]:
        """Write what is missing, on all ranks together, and open it. `part` says which share of the rows is ours."""
        identity = self.identity(teacher, needs, runs_in)
        if self.section.use == ONLY:
            cache = self._only(name, identity)
            return CachedTeacher(cache), self._record(cache, 0, 0.0, passes)
        with self._eager(teacher, needs):
            model = teacher_at(teacher, runs_in)
            device = model.device
            model.to(fastest_device())  # type: ignore[arg-type]
            mine = (part[0] * ranks.world_size() + ranks.rank(), part[1] * ranks.world_size())
            with self.progress.stage(f"what {name} knows") as step:
                found = write_cache(
                    self.root,
                    identity,
                    model,
                    self.rows,
                    self.bench.collate,
                    prefix=self.prefix,
                    part=mine,
                    progress=step,
                )
            shares = ranks.of_all((found.rows, found.seconds, found.replaced))  # all have written what is theirs
            cache = found.cache.reopened()
            if part[0] == 0:
                ranks.on_main(lambda: self._measure(cache, model))
            model.to(device)  # type: ignore[arg-type]
        rows, seconds, replaced = zip(*shares, strict=True)
        for path in sorted(set().union(*replaced)):
            self.progress.say(f"{path.name.partition('.')[0]} was damaged, and its rows were written again")
        record = self._record(cache, sum(rows), max(seconds), passes)
        self._kept[name] = CachedTeacher(cache), record
        return CachedTeacher(cache), record

    def _measure(self, cache: Cache, teacher: PreTrainedModel) -> None:
        """Measure how near it comes, unless that was done. Whether it was, only one may ask: the others look later."""
        if cache.fidelity is None:
            observer = Observer(teacher, cache.identity.needs, prefix=self.prefix)
            measure_and_keep(cache, observer, self.rows, self.bench.collate)

    def _only(self, name: str, identity: Identity) -> Cache:
        """A cache that is there already, and holds all that is asked."""
        cache = find(self.root, identity)
        if cache is None:
            differing = nearest(self.root, identity)
            raise CacheError(
                problem(
                    f"No cache in {self.root} holds what is asked of {name}",
                    given=differing or "no cache there",
                    do="Write it (potstill cache RECIPE), name its folder with cache.folder, or set cache.use=auto",
                )
            )
        return cache

    def _record(self, cache: Cache, rows: int, seconds: float, passes: float) -> dict[str, Any]:
        return {
            "folder": str(cache.folder),
            "rows": cache.rows,
            "tokens": cache.tokens,
            "bytes": cache.bytes,
            "written_rows": rows,
            "written_seconds": seconds,
            "passes": passes,
            "fidelity": cache.fidelity,
        }

    # ---- what is kept

    def _changing(self) -> str:
        """Why the teacher never sees a row again as it was; empty where it does."""
        made = self.bench.task.augmentation
        if made is None or made.fixed:
            return ""
        mixed = "data.augment mixes each batch anew (mixup, cutmix)"
        return mixed if made.mixes else "data.augment shows another view of each image in every epoch"

    def require_same_rows(self) -> None:
        """Raise `CacheError` where answers would be answers to what is never shown again."""
        if changing := self._changing():
            raise CacheError(
                problem(
                    "The teachers' answers can't be kept",
                    given=changing,
                    follows="They would be answers to other images",
                    do="Set data.augment.views to a number of fixed views, without mixup and cutmix",
                )
            )

    @property
    def rows(self) -> Any:
        """The rows that the student learns from."""
        return self.bench.transfer

    @property
    def prefix(self) -> str:
        """Of the columns that the teachers read, where their reader isn't the student's."""
        return TEACHERS if self.bench.teacher_reader is not None else ""

    def identity(self, teacher: PreTrainedModel, needs: Needs, runs_in: str) -> Identity:
        """What a cache of a teacher's knowledge is the knowledge of."""
        reads, section = self.bench.for_teacher, self.bench.recipe.data
        cut = reads.task.limit(reads.reader, section.max_length) is not None
        return Identity(
            teacher_digest(teacher),
            reads.task.digest(reads.reader) or tokenizer_digest(reads.reader),
            needs,
            section.max_length if cut else None,
            runs_in,
            Storage(self.section.precision),
        )

    def estimated(self, teacher: PreTrainedModel, needs: Needs) -> Estimate:
        """How much room the knowledge takes, from the lengths of the rows and what the teacher says to one of them."""
        with self._eager(teacher, needs):
            observer = Observer(teacher, needs, prefix=self.prefix)
            return estimate(observer, self.rows, self.bench.collate, Storage(self.section.precision))

    def _eager(self, teacher: PreTrainedModel, needs: Needs) -> AbstractContextManager[None]:
        """Eager attention for as long as attention maps are asked for, which no fused kernel forms."""
        return _attention(teacher, "eager" if needs.maps else None)


def kept_teachers(found: Preflight) -> Mapping[str, PreTrainedModel]:
    """The models whose answers may be kept: the recipe's teachers, and no assistant between them and the student."""
    return {name: model for name, model in found.own_teachers.items() if name in found.asked}


def require_keepable(bench: Workbench, found: Preflight, *, kept: bool = False) -> None:
    """Raise `CacheError`, before anything is trained, where answers are to be kept that can't be.

    That is with ``cache.use: always``, or because they are `kept` whatever the recipe says: answers to what is never
    shown again, and what no row has of its own.
    """
    if bench.recipe.cache.use != ALWAYS and not kept:
        return
    caching = Caching(bench, found.asked, Path(), Silent())
    caching.require_same_rows()
    for name, model in kept_teachers(found).items():
        try:
            caching.estimated(model, found.asked[name])
        except ModelError as error:
            raise _not_kept(name, str(error)) from error


def _not_kept(name: str, why: str) -> CacheError:
    return CacheError(problem(f"The answers of {name} can't be kept", given=why, do="Set cache.use=auto"))


@contextmanager
def _attention(model: PreTrainedModel, implementation: str | None) -> Iterator[None]:
    """Another implementation of attention for as long as the context lasts; None leaves it."""
    before = model.config._attn_implementation
    if implementation is None or before == implementation:
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
