"""TRL's `GKDTrainer` on given texts: nothing is sampled (lmbda 0), forward KL (beta 0), at temperature 1."""

import tempfile
from typing import Any

from contract import LeftOut, Order, Work, load, serve
from datasets import Dataset
from trainer_subclass import same_arguments
from transformers import AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer


class OrderedGKDTrainer(GKDTrainer):  # type: ignore[misc]
    """`GKDTrainer` over batches that were decided beforehand."""

    work: Work

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As it is, and recorded."""
        found = super().compute_loss(*args, **kwargs)
        self.work.record(found[0] if isinstance(found, tuple) else found)
        return found

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return Order(self.work.order)


def segment(work: Work) -> object:
    """The same work."""
    settings = work.settings
    if settings.temperature != 1.0:
        raise LeftOut("GKDTrainer's loss has no temperature but 1")
    student, teacher = load(settings.student, settings.task), load(settings.teacher, settings.task)
    rows = Dataset.from_dict({"input_ids": [row.tolist() for row in work.rows.ids]})
    with tempfile.TemporaryDirectory() as folder:
        config = GKDConfig(**same_arguments(work, folder), lmbda=0.0, beta=0.0, temperature=1.0, seq_kd=False)
        trainer = OrderedGKDTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=rows,
            data_collator=work.collate,
            processing_class=AutoTokenizer.from_pretrained(settings.teacher),
        )
        trainer.work = work
        trainer.train()
    return student


if __name__ == "__main__":
    serve(segment)
