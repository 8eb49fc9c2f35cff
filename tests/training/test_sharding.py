"""FSDP on two processes of the CPU: students and teachers are spread over both, and all is as with one process.

accelerate knows FSDP for devices alone, so it is told here that gloo is one. What only devices have (their memory,
mixed precision, offloading, NCCL) is not seen by these tests.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training_ranks import TASK, assert_equal, rows, still
from tiny import tiny_model, tiny_tokenizer
from tiny_ranks import on_two_ranks
from torch.distributed.fsdp import FSDPModule

from potstill import ranks
from potstill.objective import Objective
from potstill.training import Precision, TrainSettings
from potstill.training.stages import Lesson, train

TERMS = [
    {"knowledge": "labels", "weight": 0.5},
    {"knowledge": "logits", "temperature": 2.0},
    {"knowledge": "hidden"},
    {"knowledge": "values", "loss": "relation_kl", "heads": 4},
]
SETTINGS = TrainSettings(
    steps=4, batch_size=8, accumulation=2, learning_rate=1e-3, checkpoint_steps=2, evaluations=2, keep="best"
)


def as_if_devices() -> None:
    """Let accelerate take two processes of the CPU for two devices, and shard."""
    from accelerate.state import DistributedType, PartialState

    PartialState._prepare_backend = lambda self, *_args, **_options: ("gloo", DistributedType.MULTI_GPU)
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }


def trained(folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    """A stage of training with checkpoints and evaluations; `stop_at` fails in the evaluation of that number."""
    student, teacher = still(tiny_model(layers=2, seed=1)), still(tiny_model(layers=4, width=64, seed=2))
    seen: list[float] = []
    held: list[bool] = []
    batch = TASK.collator(tiny_tokenizer())(rows(4, ()).to_list())

    def evaluate(model: Any) -> dict[str, float]:
        if stop_at is not None and len(seen) + 1 == stop_at:
            raise ValueError("stopped")
        with torch.no_grad():
            logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        model.train()
        seen.append(float(logits.float().pow(2).mean()))
        held.append(isinstance(teacher, FSDPModule) and teacher.classifier.weight.to_local().numel() < 128)
        return {"accuracy": seen[-1]}

    lesson = Lesson(TASK, tiny_tokenizer(), rows(24, (1, 4)), Objective(TERMS), teacher, evaluator=evaluate)
    record = train(student, lesson, SETTINGS, folder, precision=Precision("float32", "a test"))
    weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    assert not any(isinstance(module, FSDPModule) for module in student.modules())
    return {"weights": weights, "seen": seen, "points": [p["loss"] for p in record.points], "held": held}


def by_shards(folder: Path) -> dict[str, Any]:
    """Training from start to end, and one that is stopped after its first checkpoint and goes on."""
    as_if_devices()
    with ranks.together():
        whole = trained(folder / "whole")
        with pytest.raises(ValueError, match="stopped"):
            trained(folder / "stopped", stop_at=2)
        ranks.wait()
        left = sorted(path.parent.name for path in (folder / "stopped").glob("*/complete"))
        return {"whole": whole, "left": left, "resumed": trained(folder / "stopped")}


@pytest.mark.slow
def test_sharded_training_is_that_of_one_process_and_goes_on(tmp_path: Path) -> None:
    found = on_two_ranks(by_shards, tmp_path, tmp_path)
    alone = trained(tmp_path / "alone")
    for one in found:
        assert not isinstance(one, Exception), one
        assert one["left"] == ["checkpoint-2"]
        assert all(one["whole"]["held"]), "each rank holds a part of the teacher"
        for name in ("whole", "resumed"):
            assert_equal(one[name]["weights"], alone["weights"], tolerance=2e-3)  # Adam's first steps: signs of noise
            assert one[name]["points"] == pytest.approx(alone["points"], rel=1e-4)
        assert one["whole"]["seen"] == pytest.approx(alone["seen"], rel=1e-3)
    for name, tensor in found[0]["whole"]["weights"].items():
        assert torch.equal(tensor, found[1]["whole"]["weights"][name]), name
    saved = load_file(tmp_path / "whole/final/student.safetensors")
    assert all(torch.equal(saved[name], found[0]["whole"]["weights"][name]) for name in saved)
