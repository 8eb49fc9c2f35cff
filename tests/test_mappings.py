"""Layer maps: published ones, the rule where they don't divide, and every map that doesn't fit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import MappingError
from potstill.mappings import (
    EMBEDDINGS,
    all_pairs,
    explicit,
    first,
    first_k,
    last,
    last_k,
    layer_map,
    pkd_last,
    selection,
    skip,
    spread,
    uniform,
)

depths = st.integers(1, 60).flatmap(lambda teacher: st.tuples(st.integers(1, teacher), st.just(teacher)))


def teachers(pairs: tuple[tuple[int, int], ...]) -> list[int]:
    assert [student for student, _ in pairs] == list(range(len(pairs)))
    return [teacher for _, teacher in pairs]


def test_published_maps() -> None:
    assert teachers(uniform(4, 12)) == [2, 5, 8, 11]  # TinyBERT-4
    assert teachers(uniform(6, 12)) == [1, 3, 5, 7, 9, 11]
    assert teachers(skip(6, 12)) == [1, 3, 5, 7, 9]  # PKD-Skip: layers 2, 4, 6, 8, 10 counted from 1
    assert teachers(layer_map("pkd_skip", 6, 12)) == [1, 3, 5, 7, 9]
    assert teachers(layer_map("pkd_skip", 3, 12)) == [3, 7]
    assert teachers(pkd_last(6, 12)) == [6, 7, 8, 9, 10]  # PKD-Last: 7 to 11
    assert teachers(first(3, 12)) == [0, 1, 2]
    assert teachers(spread(6, 12)) == [0, 2, 4, 7, 9, 11]  # DistilBERT


def test_maps_that_do_not_divide_follow_the_rule() -> None:
    assert teachers(uniform(5, 12)) == [1, 4, 6, 9, 11]
    assert teachers(uniform(4, 6)) == [1, 2, 4, 5]  # 1.5 and 4.5 go up
    assert teachers(layer_map("pkd_skip", 5, 12)) == [1, 4, 6, 9]
    assert teachers(pkd_last(5, 12)) == [7, 8, 9, 10]
    assert layer_map("distilbert", 4, 12) == ((0, 0), (1, 4), (2, 7), (3, 11))


@given(depths)
def test_every_map_increases_and_ends_where_it_says(depth: tuple[int, int]) -> None:
    for rule in (uniform, first, last, spread):
        chosen = teachers(rule(*depth))
        assert len(chosen) == depth[0]
        assert chosen == sorted(set(chosen))
        assert chosen[0] >= 0
        assert chosen[-1] < depth[1]
    assert uniform(*depth)[-1] == last(*depth)[-1] == (depth[0] - 1, depth[1] - 1)
    if depth[0] > 1:
        assert teachers(spread(*depth))[0] == 0
        assert teachers(spread(*depth))[-1] == depth[1] - 1
        assert layer_map("pkd_skip", *depth) == skip(*depth) == uniform(*depth)[:-1]
        assert pkd_last(*depth) == last(*depth)[:-1]
    assert first_k(depth[0], *depth) == first(*depth)
    assert last_k(depth[0], *depth) == last(*depth)


@given(st.integers(1, 60))
def test_as_many_layers_is_one_to_one(layers: int) -> None:
    for rule in (uniform, first, last, spread):
        assert rule(layers, layers) == tuple((i, i) for i in range(layers))


@pytest.mark.parametrize("rule", [uniform, first, last, skip, spread, pkd_last])
def test_a_shallower_teacher_is_refused(rule: Any) -> None:
    with pytest.raises(MappingError, match="student of 6 layers, teacher of 3"):
        rule(6, 3)
    with pytest.raises(MappingError, match="at least one layer"):
        rule(0, 3)


@pytest.mark.parametrize(("rule", "name"), [(skip, "skip"), (pkd_last, "pkd_last")])
def test_maps_without_the_last_layer_need_two(rule: Any, name: str) -> None:
    with pytest.raises(MappingError, match=rf"'{name}'.*only one.*'last' or 'uniform'"):
        rule(1, 6)


def test_a_count_of_layers_from_either_end() -> None:
    assert layer_map("first2", 3, 6) == ((0, 0), (1, 1))
    assert layer_map("last1", 3, 6) == ((2, 5),)
    assert layer_map("last2", 3, 6) == ((1, 4), (2, 5))  # in order: the last layers meet
    assert layer_map("last3", 6, 3) == ((3, 0), (4, 1), (5, 2))  # the student may be the deeper one
    assert layer_map("first2", 3, 6, embeddings=True)[0] == (EMBEDDINGS, EMBEDDINGS)


@pytest.mark.parametrize(
    ("name", "depths"), [("first4", (3, 6)), ("last4", (6, 3)), ("first0", (3, 6)), ("last0", (3, 6))]
)
def test_a_count_that_does_not_fit(name: str, depths: tuple[int, int]) -> None:
    with pytest.raises(MappingError, match=rf"'{name}' needs a count from 1.*up to 3, or '{name[:-1]}'"):
        layer_map(name, *depths)
    with pytest.raises(MappingError, match="at least one layer"):
        layer_map(name, 0, 3)


def test_all_pairs() -> None:
    assert layer_map("all", 2, 3) == all_pairs(2, 3) == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
    assert all_pairs(3, 1) == ((0, 0), (1, 0), (2, 0))
    assert layer_map("all", 1, 1, embeddings=True) == ((EMBEDDINGS, EMBEDDINGS), (0, 0))
    with pytest.raises(MappingError, match="at least one layer"):
        all_pairs(2, 0)


def test_names_give_their_maps() -> None:
    for name, rule in {
        "distilbert": spread,
        "pkd_skip": skip,
        "pkd_last": pkd_last,
        "all": all_pairs,
        "skip": skip,
    }.items():
        assert layer_map(name, 5, 12) == rule(5, 12)


def test_explicit_pairs() -> None:
    wanted = ((EMBEDDINGS, EMBEDDINGS), (0, 5), (2, 1))
    assert explicit({2: 1, "embeddings": "embeddings", 0: 5}, 3, 6) == wanted
    assert explicit([[2, 1], ("embeddings", "embeddings"), [0, 5]], 3, 6) == wanted
    assert explicit([[0, 0], [1, 0], [2, 1]], 3, 2) == ((0, 0), (1, 0), (2, 1))  # more layers than the teacher


def test_a_student_layer_may_learn_from_several() -> None:
    wanted = ((EMBEDDINGS, 0), (EMBEDDINGS, 1), (0, 1), (0, 2), (1, 2))
    assert explicit([[1, 2], [0, 2], [0, 1], ["embeddings", 1], ["embeddings", 0]], 3, 6) == wanted
    assert explicit({0: [2, 1], 1: 2, "embeddings": (0, 1)}, 3, 6) == wanted
    assert layer_map({0: ["embeddings", 5]}, 3, 6) == ((0, EMBEDDINGS), (0, 5))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({}, "no pairs"),
        ([], "no pairs"),
        ({3: 0}, "3 is no layer of the student, which has 0 to 2"),
        ({0: 6}, "6 is no layer of the teacher, which has 0 to 5"),
        ({0: -1}, "-1 is no layer of the teacher"),
        ({-1: 0}, "-1 is no layer of the student"),
        ({0: 1.0}, "1.0 is no layer"),
        ({0: True}, "True is no layer"),
        ({0: "1"}, "'1' is no layer"),
        ({0: []}, "student layer 0 has an empty list"),
        ({0: [1, 6]}, "6 is no layer of the teacher"),
        ({0: [[1]]}, r"\[1\] is no layer of the teacher"),
        ([[0, [1, 2]]], r"\[1, 2\] is no layer of the teacher"),
        ([[0, 1], [0, 2], [0, 1]], "student layer 0 and teacher layer 1 are paired twice"),
        ({0: [1, 1]}, "student layer 0 and teacher layer 1 are paired twice"),
        ([["embeddings", 0], ["embeddings", 0]], "student layer embeddings and teacher layer 0 are paired twice"),
        ([1, 3, 5], "1 is not a pair"),
        ([[1, 2, 3]], "not a pair"),
        (["embeddings"], "not a pair"),
    ],
)
def test_pairs_that_do_not_fit(pairs: Any, message: str) -> None:
    with pytest.raises(MappingError, match=message):
        explicit(pairs, 3, 6)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(MappingError, match=r"9 is no layer of the student.*paired twice.*8 is no layer of the teacher"):
        explicit([[9, 0], [0, 1], [0, 1], [0, 8]], 3, 6)


def test_layer_map_takes_names_and_pairs() -> None:
    assert layer_map("uniform", 3, 6) == uniform(3, 6)
    assert layer_map("skip", 3, 6, embeddings=True) == ((EMBEDDINGS, EMBEDDINGS), (0, 1), (1, 3))
    assert layer_map([[0, 2]], 3, 6) == ((0, 2),)
    assert layer_map({0: 2}, 3, 6, embeddings=True) == ((EMBEDDINGS, EMBEDDINGS), (0, 2))
    # Paired by hand already, and with another layer: left as it is.
    assert layer_map({"embeddings": 0, 0: 2}, 3, 6, embeddings=True) == ((EMBEDDINGS, 0), (0, 2))


def test_layer_map_refuses_what_it_does_not_know() -> None:
    with pytest.raises(
        MappingError, match=r"'unifrom'.*Did you mean 'uniform'.*first, firstK, last, lastK, .*skip, uniform"
    ):
        layer_map("unifrom", 3, 6)
    with pytest.raises(MappingError, match=r"'pkd_skp'.*Did you mean 'pkd_skip'"):
        layer_map("pkd_skp", 3, 6)
    for wrong in ("first-1", "first2.5", "firstK", "lasttwo", "first²", "uniform2"):
        with pytest.raises(MappingError, match="Unknown layer map"):
            layer_map(wrong, 3, 6)
    with pytest.raises(MappingError, match="name or pairs"):
        layer_map(3, 3, 6)  # type: ignore[arg-type]


def test_selection_of_a_count() -> None:
    assert selection(3, 6) == (0, 3, 5)
    assert selection(1, 6) == (0,)
    assert selection(6, 6) == (0, 1, 2, 3, 4, 5)
    assert selection(3, 6, rule="uniform") == (1, 3, 5)
    assert selection(3, 6, rule="first") == (0, 1, 2)
    assert selection(3, 6, rule="last") == (3, 4, 5)


def test_selection_of_a_list() -> None:
    assert selection([0, 2, 5], 6) == (0, 2, 5)
    assert selection((4,), 6) == (4,)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "at least one layer"),
        (7, "student of 7 layers, teacher of 6"),
        ([], "the list is empty"),
        ([0, 6], "6 is no layer of the teacher, which has 0 to 5"),
        ([-1], "-1 is no layer"),
        ([0, True], "True is no layer"),
        ([0, 2.0], "2.0 is no layer"),
        ([2, 0], "must increase"),
        ([1, 1], "must increase"),
        ("three", "count or a list"),
        (True, "count or a list"),
        (2.5, "count or a list"),
    ],
)
def test_selections_that_do_not_fit(layers: Any, message: str) -> None:
    with pytest.raises(MappingError, match=message):
        selection(layers, 6)


def test_selection_refuses_an_unknown_rule() -> None:
    with pytest.raises(MappingError, match=r"'spred'.*Did you mean 'spread'"):
        selection(3, 6, rule="spred")
