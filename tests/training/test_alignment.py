"""Tokens beside one another: what is compared token by token is the same token, or the comparison is refused."""

import pytest
from datasets import Dataset
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from potstill.errors import ModelError
from potstill.objective import Objective, Term
from potstill.students import build_student, cut_tokenizer, cut_vocabulary
from potstill.tasks import TextClassification
from potstill.tasks.tokens import first_unaligned
from potstill.training.alignment import token_terms
from potstill.training.distiller import bind
from potstill.training.trainer import DistillationTrainer

TASK = TextClassification("single_label", ("bad", "good"))


def both(rows: Dataset, student, teacher) -> Dataset:
    ours, theirs = (TASK.encode(rows, one, max_length=32) for one in (student, teacher))
    theirs = theirs.select_columns(["input_ids", "token_type_ids"])
    for name in theirs.column_names:
        ours = ours.add_column(f"teacher_{name}", theirs[name][:])
    return ours


@pytest.fixture
def cut():
    teacher = tiny_tokenizer()
    rows = tiny_rows(30)
    return rows, teacher, cut_tokenizer(teacher, rows["text"][:20])


def test_a_cut_vocabulary_is_aligned_on_its_own_texts_alone(cut):
    rows, teacher, made = cut
    assert first_unaligned(both(rows.select(range(20)), made.tokenizer, teacher), made.tokenizer, teacher) is None
    lost = set(teacher.get_vocab()) - set(made.tokenizer.get_vocab())
    unseen = Dataset.from_dict({"text": [rows[0]["text"], lost.pop()], "labels": [0, 1]})
    assert first_unaligned(both(unseen, made.tokenizer, teacher), made.tokenizer, teacher) == 1


def test_one_token_more_in_a_row_of_many_is_found(cut):
    rows, teacher, made = cut
    found = both(rows.select(range(20)), made.tokenizer, teacher)

    def longer(row, number):
        return {"input_ids": [*row["input_ids"], 3]} if number == 13 else row

    assert first_unaligned(found.map(longer, with_indices=True), made.tokenizer, teacher) == 13


def test_padding_on_different_sides_is_not_aligned(cut):
    rows, _, made = cut
    left = tiny_tokenizer(padding_side="left")
    assert first_unaligned(both(rows, made.tokenizer, left), made.tokenizer, left) == 0


def test_only_terms_that_compare_tokens_with_a_teacher_count():
    terms = [{"knowledge": "labels"}, {"knowledge": "logits"}, Term("hidden", "rkd_distance", pool="mean")]
    more = [{"knowledge": "hidden"}, {"knowledge": "values"}]
    teacher = tiny_model(layers=2)
    student = build_student(teacher, layers=1)
    assert token_terms(bind(Objective(terms), student, TASK, teacher)) == []
    assert token_terms(bind(Objective([*terms, *more]), student, TASK, teacher)) == ["hidden 2", "values"]
    peers = [{"knowledge": "hidden", "teacher": "peers"}, {"knowledge": "logits"}]
    beside = {"peers 1": build_student(teacher, layers=1)}
    assert token_terms(bind(Objective(peers), student, TASK, teacher, peers=beside)) == []


def test_the_trainer_refuses_rows_that_are_not_aligned(cut):
    rows, teacher, made = cut
    model = tiny_model(layers=2)
    student = cut_vocabulary(build_student(model, layers=1), made)
    lost = (set(teacher.get_vocab()) - set(made.tokenizer.get_vocab())).pop()
    unseen = both(Dataset.from_dict({"text": [lost], "labels": [0]}), made.tokenizer, teacher)
    known = both(rows.select(range(20)), made.tokenizer, teacher)
    hidden = Objective([Term("hidden")])
    given = {"teacher": model, "teacher_reader": teacher}
    DistillationTrainer(student, hidden, TASK, made.tokenizer, known, **given)
    DistillationTrainer(student, Objective([Term("logits")]), TASK, made.tokenizer, unseen, **given)
    with pytest.raises(ModelError, match=r"hidden would compare tokens that aren't the same.*row 0"):
        DistillationTrainer(student, hidden, TASK, made.tokenizer, unseen, **given)
    with pytest.raises(ModelError, match="different vocabularies"):
        DistillationTrainer(student, hidden, TASK, made.tokenizer, known, teacher=model)
