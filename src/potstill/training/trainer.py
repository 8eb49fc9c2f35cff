"""`DistillationTrainer`: the Hugging Face `Trainer`, around a `Distiller`.

What it changes, and why:
- The loss is divided by counts over the whole accumulation window and all ranks, each term by its own positions
  (`Trainer` would count labels alone, and not divide a custom loss at all).
- Batches come from a sampler that is a pure function of seed and epoch, so that a resumed run sees the same ones.
- Checkpoints hold plain safetensors and are marked when whole; the last whole one stays until the next is.
- Each term's share of the loss is logged; a share that is not a finite number stops training and names term and step.
  Shares are collected on the device and read when something is logged, so that a step never waits for them.
- Before anything is evaluated or saved, it is logged. A checkpoint thus never falls between two points of the learning
  curve (a resumed run would draw another curve), and never holds weights from after a loss that is not a number.
- Several ranks share each batch of one sampler, so that they train on the batches of one process, and the mean of a
  term is over the positions of all. Terms that compare the rows of a batch with one another see those of their rank.
- Rank 0 evaluates, writes and decides; the others wait for it and hear what it found.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from potstill import ranks
from potstill.augment.image import VIEW
from potstill.cache import CachedCollator, CachedTeacher
from potstill.checks import problem
from potstill.data.ahead import handing_back
from potstill.errors import PotstillError, TrainingError
from potstill.objective import Objective, Parts, by_name
from potstill.tasks.base import Rows, Task
from potstill.training.alignment import require_aligned, require_known
from potstill.training.checkpoints import load_weights, mark_complete, prune, save_weights
from potstill.training.combination import Combination
from potstill.training.distiller import ROW, Distiller, Teacher
from potstill.training.dropout import cheap_dropout
from potstill.training.embeddings import LazyAdamW, clipped_norm, require_unsharded, sparse_table
from potstill.training.masks import masks_without_waiting
from potstill.training.parallel import parallel_arguments
from potstill.training.sampler import LengthGroupedSampler, SharedBatches
from potstill.training.sharding import all_finite, require_shardable, root_gathered, shard
from potstill.training.views import FreshViews

RANK_SEEDS = 1_000_003
Evaluator = Callable[[PreTrainedModel], Mapping[str, float]]


class DistillationTrainer(Trainer):
    """Train a student on an objective.

    Args:
        student: the model to train; trained in place, and a plain model all along.
        objective: the terms.
        task: the task of both models.
        reader: what makes batches of the rows: a tokenizer, or an `ImageReader`.
        train_dataset: rows as `task.encode` gives them.
        teacher: the model to learn from, or several by name; None where only labels teach. A `CachedTeacher` takes the
            place of any: it is looked up by what the rows hold.
        args: any `TrainingArguments`; columns are never dropped, whatever they say.
        teacher_dtype: the precision that the teachers run in.
        peers: further students that learn along (mutual learning), trained in place too.
        combination: how several teachers are combined.
        teacher_reader: makes the columns ``teacher_*``, where the teachers have another reader than the student.
        evaluator: called with the student at each evaluation; gives metrics by name. None evaluates nothing.
        patience: stop after so many evaluations without a better `args.metric_for_best_model`.
        group_by_length: put rows of like length into one batch.
        sparse_embeddings: move only the rows of the word embeddings that were in the batch, with `LazyAdamW`.

    Raises:
        RecipeError, ModelError: objective, teacher and student don't fit; raised before anything is trained.
        TrainingError: from `train`, when a term's loss is not a finite number.
    """

    loss_is_scaled_for_ga = True

    def __init__(  # the arguments of a Trainer, and those of a distillation
        self,
        student: PreTrainedModel,
        objective: Objective,
        task: Task,
        reader: Any,
        train_dataset: Rows,
        *,
        teacher: Teacher | Mapping[str, Teacher] | None = None,
        args: TrainingArguments | None = None,
        teacher_dtype: torch.dtype | None = None,
        peers: Sequence[PreTrainedModel] = (),
        combination: Combination | None = None,
        teacher_reader: Any = None,
        evaluator: Evaluator | None = None,
        patience: int | None = None,
        group_by_length: bool = True,
        sparse_embeddings: bool = False,
        **trainer_options: Any,
    ) -> None:
        arguments = args if args is not None else TrainingArguments(report_to="none")
        if arguments.n_gpu > 1:
            # One device a process: `Trainer` would split batches over all of them, and a teacher outside the module
            # can't follow its student there. For several, start one process each (torchrun).
            arguments = copy.copy(arguments)
            arguments._n_gpu = 1
        set_seed(arguments.seed)  # projections are initialised next
        self.distiller = Distiller(
            student,
            objective,
            task,
            teacher,
            teacher_dtype=teacher_dtype,
            peers=peers,
            combination=combination,
            rows=len(train_dataset),
            own_columns=teacher_reader is not None,
        )
        if task.of_tokens:
            require_known(reader, self.distiller.vocabulary)
        if teacher_reader is not None:
            require_aligned(self.distiller.objective, task, train_dataset, reader, teacher_reader)
        lookups = [
            one.lookup(name, train_dataset, self.distiller.asked[name], self.distiller.prefix)
            for name, one in by_name(teacher).items()
            if isinstance(one, CachedTeacher) and name in self.distiller.asked
        ]
        collate = task.collator(reader, teacher_reader)
        if lookups:
            collate = CachedCollator(collate, lookups, ROW)
        if self.distiller.objective.needs_rows or lookups:
            train_dataset = train_dataset.add_column(ROW, np.arange(len(train_dataset)))
        self.evaluator = evaluator
        self.patience = patience
        self.group_by_length = group_by_length
        self.sparse_embeddings = sparse_embeddings
        self._names: list[str] = []  # of the shares
        self._shares: list[tuple[int, Tensor]] = []  # step, each term's share
        if arguments.world_size > 1:
            arguments = parallel_arguments(arguments, self.distiller, train_dataset, collate)
        collate = handing_back(collate)
        if task.augmentation is not None and VIEW not in train_dataset.column_names:
            train_dataset = FreshViews(train_dataset, arguments.seed)
        super().__init__(
            model=self.distiller,
            args=arguments,
            train_dataset=train_dataset,
            data_collator=collate,
            # `Trainer` wants to see one before it evaluates; the evaluator has its own rows, and never reads it
            eval_dataset=train_dataset if evaluator is not None else None,
            **trainer_options,
        )
        if self.is_fsdp_enabled:
            self._shard_teachers()
        else:
            self.distiller.to(arguments.device)
        for callback in (PrinterCallback, ProgressCallback) if arguments.disable_tqdm else ():
            self.remove_callback(callback)

    def _shard_teachers(self) -> None:
        """Spread the teachers over the ranks, as accelerate spreads what trains once training begins."""
        plugin = self.accelerator.state.fsdp_plugin
        require_shardable(self.distiller.objective, plugin.fsdp_version)
        for teacher in self.distiller.teachers.values():
            shard(teacher, offload_policy=plugin.cpu_offload)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; on a CPU with dropout that costs little, in forward and recomputed passes alike."""
        if self.args.process_index:
            torch.manual_seed(self.args.seed + RANK_SEEDS * self.args.process_index)  # other dropout on each rank
        if self.sparse_embeddings:
            require_unsharded(self.is_fsdp_enabled or self.is_deepspeed_enabled)
        with masks_without_waiting(self.args.device), ExitStack() as stack:
            for member in self.distiller.members:
                if self.sparse_embeddings:
                    stack.enter_context(sparse_table(member.student))
                stack.enter_context(cheap_dropout(member.student))
            stack.callback(self._unwrap)
            return super().train(*args, **kwargs)

    def _unwrap(self) -> None:
        """Let go of the wrapper that exchanges gradients: it would go on doing so in whatever is trained next."""
        if self.model_wrapped is not self.distiller:
            self.model_wrapped = self.distiller
            self.accelerator.free_memory()

    # ---- the optimiser

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As `Trainer` makes it, and `LazyAdamW` in AdamW's place for sparse embeddings."""
        if self.sparse_embeddings and self.optimizer_cls_and_kwargs is None:
            _, options = self.get_optimizer_cls_and_kwargs(self.args, self.distiller)  # type: ignore[arg-type]
            self.optimizer_cls_and_kwargs = (LazyAdamW, options)
        return super().create_optimizer(model)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.sparse_embeddings:
            return clipped_norm(model.parameters(), self.args.max_grad_norm)
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.sparse_embeddings and grad_norm is None:
            return clipped_norm(model.parameters(), float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]

    # ---- data

    def _remove_unused_columns(self, dataset: Rows, description: str | None = None) -> Rows:
        return dataset  # each model picks its own inputs, and the teacher's may not be the student's

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    def _get_train_sampler(self, train_dataset: Rows | None = None) -> LengthGroupedSampler:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        known = self.group_by_length and "length" in rows.column_names
        lengths = list(rows["length"]) if known else None
        together = self._train_batch_size * self.args.world_size
        fresh = isinstance(rows, FreshViews)
        return LengthGroupedSampler(lengths, together, self.args.seed, rows=len(rows), number_epochs=fresh)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches; of several ranks, each gets its part. accelerate would give whole batches to ranks in turn."""
        size = self.args.world_size
        if size == 1:
            return super().get_train_dataloader()
        sampler = self._get_train_sampler()
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=SharedBatches(sampler, self._train_batch_size * size, self.args.process_index, size),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    # ---- the loss

    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """The micro-batches of one optimiser step, and the positions in them, counted over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        for batch in batches:
            if isinstance(batch, PotstillError):
                raise batch
        masks = [self.distiller.task.masks(batch) for batch in batches]
        names = list(masks[0]) if masks else []
        counts = torch.stack([sum(mask[name].sum() for mask in masks).float() for name in names]).to(device)  # type: ignore[union-attr]
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        return batches, dict(zip(names, counts.unbind(), strict=True))

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """The loss of a micro-batch; its shares are kept for the log. DDP averages gradients, hence the world size."""
        progress = self.state.global_step / max(1, self.state.max_steps)
        parts: Parts = model(inputs, counts=num_items_in_batch, progress=progress)
        self._names = list(parts.terms)
        shares = torch.stack([share.detach().float() for share in parts.terms.values()])
        self._shares.append((self.state.global_step + 1, shares))
        loss = parts.total * self.args.world_size
        return (loss, parts) if return_outputs else loss

    def _drain_shares(self) -> dict[str, float]:
        """Each term's mean share since the last call; raises `TrainingError` at the first that is not finite."""
        if not self._shares:
            return {}
        steps = [step for step, _ in self._shares]
        shares = torch.stack([share for _, share in self._shares])
        self._shares = []
        if self.args.world_size > 1:
            shares = self.accelerator.reduce(shares, reduction="sum")
        shares = shares.cpu()
        names = self._names
        bad = (~shares.isfinite()).nonzero()
        if len(bad):
            row, _ = bad[0].tolist()
            terms = [name for name, fine in zip(names, shares[row].isfinite().tolist(), strict=True) if not fine]
            raise TrainingError(
                problem(
                    f"The loss is not a finite number at step {steps[row]}",
                    given=", ".join(f"{name} = {shares[row][names.index(name)].item()}" for name in terms),
                    follows="Nothing after this step is worth keeping; the last checkpoint before it is",
                    do="Lower the learning rate or the term's weight, or set train.precision=float32",
                )
            )
        return dict(zip(names, (shares.sum(0) / len(set(steps))).tolist(), strict=True))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_evaluate or self.control.should_save:
            self.control.should_log = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term's share to what is logged."""
        if "loss" in logs:
            logs.update({f"part/{name}": share for name, share in self._drain_shares().items()})
        super().log(logs, start_time)

    # ---- evaluation

    def evaluate(self, *_args: Any, metric_key_prefix: str = "eval", **_kwargs: Any) -> dict[str, float]:
        """The metrics that the evaluator finds in the student as it is now."""
        if self.evaluator is None:
            return {}
        evaluator = self.evaluator
        if self.is_fsdp_enabled:  # all ranks run the model, and rank 0's numbers count
            with root_gathered(self.distiller):
                own = dict(evaluator(self.distiller.student))
            found = ranks.on_main(lambda: own)
        else:
            found = ranks.on_main(lambda: dict(evaluator(self.distiller.student)))
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in found.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.args.metric_for_best_model is not None:
            self.control.should_save = True  # so that the best can be brought back
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        better: bool = super()._determine_best_metric(metrics, trial)
        if self.patience is not None and self.state.best_global_step is not None:
            key = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
            since = [e for e in self.state.log_history if key in e and e["step"] > self.state.best_global_step]
            if len(since) >= self.patience:
                self.control.should_training_stop = True
        return better

    # ---- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of all that trains; all ranks call it, and rank 0 writes."""
        save_weights(self.distiller, Path(output_dir or str(self.args.output_dir)))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._require_finite_weights()
        super()._save_checkpoint(model, trial)
        ranks.wait()  # each writes the state of its own generators
        ranks.on_main(self._mark_checkpoint)

    def _mark_checkpoint(self) -> None:
        folder = Path(str(self.args.output_dir))
        newest = folder / f"checkpoint-{self.state.global_step}"
        mark_complete(newest)
        prune(folder, {newest, *([self.best_checkpoint] if self.best_checkpoint else [])})

    def _require_finite_weights(self) -> None:
        """A finite loss may have a gradient that is not: the weights are spoilt one step before the loss shows it."""
        if not ranks.everyone(all_finite(self.distiller)):
            raise TrainingError(
                problem(
                    f"The weights are not finite numbers after step {self.state.global_step}",
                    follows="Nothing after this step is worth keeping; the last checkpoint before it is",
                    do="Lower the learning rate or a term's weight, or set train.precision=float32",
                )
            )

    def restore(self, checkpoint: Path) -> None:
        """Take weights and history from a checkpoint, without training on."""
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        load_weights(self.distiller, checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.distiller, Path(resume_from_checkpoint))

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint of the best evaluation so far, where one is sought."""
        step = self.state.best_global_step if self.args.metric_for_best_model is not None else None
        path = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        return path if step and path.exists() else None
