"""The trainer: accumulation changes nothing, shares are logged, a loss that is not a number stops and is named."""

import math

import pytest
import torch
from datasets import Dataset
from tiny import save_folder, tiny_model, tiny_rows, tiny_tokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments

from potstill.errors import TrainingError
from potstill.objective import Objective, Term
from potstill.tasks import TextClassification
from potstill.training import DistillationTrainer
from potstill.training.checkpoints import latest

TASK = TextClassification()
TERMS = (
    Term("labels", weight=0.5),
    Term("logits", temperature=2.0),
    Term("hidden", layers="uniform"),
    Term("values", options={"heads": 4}),
)


def rows(n=8, unlabelled=()):
    encoded = TASK.encode(tiny_rows(n), tiny_tokenizer(), max_length=32)
    labels = [-100 if row in unlabelled else label for row, label in enumerate(encoded["labels"])]
    return encoded.remove_columns("labels").add_column("labels", labels)


def trainer(folder, data, terms=TERMS, student=None, batch=8, accumulation=1, steps=1, **options):
    arguments = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_nan_inf_filter": False,
        **options.pop("arguments", {}),
    }
    return DistillationTrainer(
        student if student is not None else tiny_model(layers=2, width=32, seed=1),
        Objective(terms),
        TASK,
        tiny_tokenizer(),
        data,
        teacher=options.pop("teacher", None) or tiny_model(layers=4, width=64, seed=2),
        args=TrainingArguments(**arguments),
        **options,
    )


def still(model):
    """No dropout: micro-batches would draw other masks than one batch."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def losses(made):
    return [entry for entry in made.state.log_history if "loss" in entry]


# ---- accumulation


@pytest.mark.parametrize("unlabelled", [(), (1, 4, 5, 6, 7)], ids=["labelled", "partly labelled"])
def test_accumulation_changes_neither_weights_nor_losses(tmp_path, unlabelled):
    """With plain gradient descent: Adam's first step is the sign of a gradient, and that of a 0 is rounding."""
    data, found = rows(8, unlabelled), []
    for batch, accumulation in ((8, 1), (2, 4), (3, 3), (1, 8)):
        student = still(tiny_model(layers=2, width=32, seed=1))
        start = [p.detach().clone() for p in student.parameters()]
        made = trainer(tmp_path, data, student=student, batch=batch, accumulation=accumulation)
        made.train()
        assert made.state.global_step == 1
        weights = {name: tensor.clone() for name, tensor in made.distiller.state_dict().items()}
        found.append((weights, losses(made)[0]))
        assert any(not torch.equal(a, b) for a, b in zip(start, student.parameters(), strict=True))
    for weights, logged in found[1:]:
        for name, tensor in found[0][0].items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
        for key in ("loss", *(key for key in logged if key.startswith("part/"))):
            assert math.isclose(logged[key], found[0][1][key], rel_tol=1e-5, abs_tol=1e-7), key


def test_a_last_smaller_window_is_divided_by_its_own_counts(tmp_path):
    """5 batches in windows of 2: the third window holds one batch."""
    data = rows(10)
    student = still(tiny_model(layers=2, width=32, seed=1))
    made = trainer(tmp_path, data, student=student, batch=2, accumulation=2, steps=3, arguments={"learning_rate": 1e-9})
    made.train()
    means = [entry["loss"] for entry in losses(made)]
    alone = []
    for window in torch.tensor(list(made._get_train_sampler())).split(4):
        one = trainer(
            tmp_path, data.select(window.tolist()), student=student, batch=4, arguments={"learning_rate": 1e-9}
        )
        one.distiller.projectors.load_state_dict(made.distiller.projectors.state_dict())
        one.train()
        alone.append(losses(one)[0]["loss"])
    assert means == pytest.approx(alone, rel=1e-4)


# ---- what is logged


def test_each_terms_share_is_logged_and_they_add_up(tmp_path):
    made = trainer(tmp_path, rows(20), batch=2, accumulation=3, steps=8, arguments={"logging_steps": 4})
    made.train()
    assert [entry["step"] for entry in losses(made)] == [4, 8]
    for entry in losses(made):
        shares = {key: value for key, value in entry.items() if key.startswith("part/")}
        assert list(shares) == ["part/labels", "part/logits", "part/hidden", "part/values"]
        assert sum(shares.values()) == pytest.approx(entry["loss"], rel=1e-5)


def test_columns_that_only_the_teacher_needs_are_not_dropped(tmp_path):
    student = tiny_model("distilbert", layers=2, width=32, seed=1)
    seen = []
    made = trainer(tmp_path, rows(), student=student, terms=[Term("logits")])
    made.distiller.teacher.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    made.train()
    assert seen == [{"input_ids", "attention_mask", "token_type_ids"}]


def test_weights_of_terms_follow_the_steps(tmp_path):
    terms = [Term("labels", weight={"schedule": "linear", "from": 1.0, "to": 0.0})]
    student = still(tiny_model(layers=2, width=32, seed=1))
    made = trainer(tmp_path, rows(8), terms=terms, student=student, steps=4, arguments={"learning_rate": 1e-9})
    made.train()
    shares = [entry["loss"] for entry in losses(made)]
    assert shares == pytest.approx([shares[0] * weight for weight in (1.0, 0.75, 0.5, 0.25)], rel=1e-4)


# ---- teacher, student, projections


def test_the_teacher_stays_as_it_was_while_student_and_projections_learn(tmp_path):
    teacher = tiny_model(layers=4, width=64, seed=2)
    before = [p.clone() for p in teacher.parameters()]
    modes = []
    made = trainer(tmp_path, rows(), steps=3, teacher=teacher)
    start = {name: tensor.clone() for name, tensor in made.distiller.state_dict().items()}
    teacher.register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    made.train()
    assert modes == [False] * 3
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert all(p.grad is None for p in teacher.parameters())
    trained = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in teacher.parameters()}
    projections = [name for name in start if name.startswith("projectors.")]
    assert len(projections) == 6
    for name in projections:
        assert not torch.equal(start[name], made.distiller.state_dict()[name]), name


def test_the_saved_student_is_a_plain_model_without_projections(tmp_path):
    student = tiny_model(layers=2, width=32, seed=1)
    trainer(tmp_path / "run", rows(), student=student).train()
    folder = save_folder(student, tmp_path / "student")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.num_hidden_layers == 2
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_gradient_checkpointing_trains_the_same_weights(tmp_path):
    found = []
    for on in (False, True):
        student = still(tiny_model(layers=2, width=32, seed=1))
        options = {"activation_checkpointing": on, "activation_checkpointing_kwargs": {"use_reentrant": False}}
        made = trainer(tmp_path, rows(), student=student, arguments=options)
        made.train()
        found.append(student.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], msg=name)


# ---- not a number


def spoiled(call):
    """A loss that is NaN once, when it is called for that time."""
    calls = []

    def spoiled_mse(student, teacher):
        calls.append(1)
        value = (student - teacher).square().mean(-1)
        return value * float("nan") if len(calls) == call else value

    return spoiled_mse


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("logging", [1, 100])
@pytest.mark.parametrize("step", [3, 6])
def test_a_term_that_is_not_a_number_is_named_with_its_step(tmp_path, accumulation, logging, step):
    # 4 batches an epoch: with 3 micro-batches a step, every second window holds a single one
    windows = {1: (1, 1), 3: (3, 1)}[accumulation]
    terms = [Term("labels"), Term("logits", loss=spoiled(sum(windows[i % 2] for i in range(step))))]
    arguments = {"logging_steps": logging, "save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path, rows(16), terms, batch=4, accumulation=accumulation, steps=12, arguments=arguments)
    with pytest.raises(TrainingError, match=f"at step {step}. Got: logits = nan"):
        made.train()
    kept = latest(tmp_path)
    assert kept is not None
    assert kept.name == f"checkpoint-{(step - 1) // 2 * 2}"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [kept.name]
    made.restore(kept)
    assert all(p.isfinite().all() for p in made.distiller.parameters())


def test_a_loss_that_is_not_a_number_is_found_before_anything_is_evaluated(tmp_path):
    asked = []
    arguments = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 50}
    terms = [Term("logits", loss=spoiled(2))]

    def evaluator(_student):
        asked.append(1)
        return {"accuracy": 0.5}

    made = trainer(tmp_path, rows(), terms=terms, steps=6, evaluator=evaluator, arguments=arguments)
    with pytest.raises(TrainingError, match="at step 2"):
        made.train()
    assert asked == []


def test_weights_that_are_not_numbers_are_never_saved(tmp_path):
    """A finite loss whose gradient is not: the loss shows it only a step later."""

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:  # the fourth
                with torch.no_grad():
                    next(model.parameters()).fill_(float("inf"))

    arguments = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 50}
    made = trainer(tmp_path, rows(), steps=6, callbacks=[Spoil()], arguments=arguments)
    with pytest.raises(TrainingError, match="after step 4"):
        made.train()
    assert latest(tmp_path).name == "checkpoint-2"


# ---- evaluation


def test_the_evaluator_sees_the_student_and_training_goes_on_in_train_mode(tmp_path):
    student, seen = tiny_model(layers=2, width=32, seed=1), []

    def evaluator(model):
        assert model is student
        model.eval()
        seen.append(len(seen) / 10)
        return {"accuracy": seen[-1]}

    modes = []
    arguments = {"eval_strategy": "steps", "eval_steps": 2}
    made = trainer(tmp_path, rows(), student=student, steps=4, evaluator=evaluator, arguments=arguments)
    student.register_forward_pre_hook(lambda module, _args: modes.append(module.training))
    made.train()
    assert modes == [True] * 4
    found = [entry for entry in made.state.log_history if "eval_accuracy" in entry]
    assert [(entry["step"], entry["eval_accuracy"]) for entry in found] == [(2, 0.0), (4, 0.1)]


def test_rows_of_a_plain_list_of_columns_work_without_lengths(tmp_path):
    data = rows(12).remove_columns("length")
    assert isinstance(data, Dataset)
    made = trainer(tmp_path, data, batch=4, steps=3)
    made.train()
    assert made.state.epoch == 1.0


def test_several_devices_are_one_process_each(tmp_path):
    """`Trainer` would split a batch over the devices of one process; a teacher outside the module can't follow."""
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 2
    student, teacher = tiny_model(layers=2, seed=1), tiny_model(seed=2)
    made = DistillationTrainer(
        student, Objective([Term("logits")]), TASK, tiny_tokenizer(), rows(), teacher=teacher, args=arguments
    )
    assert made.args.n_gpu == 1
