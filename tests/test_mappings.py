"""Layer maps: published ones, the rule where they don't divide, and every map that doesn't fit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import MappingError
from potstill.mappings import EMBEDDINGS, explicit, first, last, layer_map, selection, skip, spread, uniform

depths = st.integers(1, 60).flatmap(lambda teacher: st.tuples(st.integers(1, teacher), st.just(teacher)))


def teachers(pairs: tuple[tuple[int, int], ...]) -> list[int]:
    assert [student for student, _ in pairs] == list(range(len(pairs)))
    return [teacher for _, teacher in pairs]


def test_published_maps() -> None:
    assert teachers(uniform(4, 12)) == [2, 5, 8, 11]  # TinyBERT-4
    assert teachers(uniform(6, 12)) == [1, 3, 5, 7, 9, 11]
    assert teachers(skip(6, 12)) == [1, 3, 5, 7, 9]  # PKD-Skip: layers 2, 4, 6, 8, 10 counted from 1
    assert teachers(last(6, 12))[:-1] == [6, 7, 8, 9, 10]  # PKD-Last: 7 to 11
    assert teachers(first(3, 12)) == [0, 1, 2]
    assert teachers(spread(6, 12)) == [0, 2, 4, 7, 9, 11]  # DistilBERT


def test_maps_that_do_not_divide_follow_the_rule() -> None:
    assert teachers(uniform(5, 12)) == [1, 4, 6, 9, 11]
    assert teachers(uniform(4, 6)) == [1, 2, 4, 5]  # 1.5 and 4.5 go up


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
        assert skip(*depth) == uniform(*depth)[:-1]


@given(st.integers(1, 60))
def test_as_many_layers_is_one_to_one(layers: int) -> None:
    for rule in (uniform, first, last, spread):
        assert rule(layers, layers) == tuple((i, i) for i in range(layers))


@pytest.mark.parametrize("rule", [uniform, first, last, skip, spread])
def test_a_shallower_teacher_is_refused(rule: Any) -> None:
    with pytest.raises(MappingError, match="student of 6 layers, teacher of 3"):
        rule(6, 3)
    with pytest.raises(MappingError, match="at least one layer"):
        rule(0, 3)


def test_skip_needs_two_layers() -> None:
    with pytest.raises(MappingError, match=r"only one.*'last' or 'uniform'"):
        skip(1, 6)


def test_explicit_pairs() -> None:
    wanted = ((EMBEDDINGS, EMBEDDINGS), (0, 5), (2, 1))
    assert explicit({2: 1, "embeddings": "embeddings", 0: 5}, 3, 6) == wanted
    assert explicit([[2, 1], ("embeddings", "embeddings"), [0, 5]], 3, 6) == wanted
    assert explicit([[0, 0], [1, 0], [2, 1]], 3, 2) == ((0, 0), (1, 0), (2, 1))  # more layers than the teacher


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
        ({0: [1]}, r"\[1\] is no layer"),
        ([[0, 1], [0, 2]], "student layer 0 is named twice"),
        ([["embeddings", 0], ["embeddings", 1]], "student layer embeddings is named twice"),
        ([1, 3, 5], "1 is not a pair"),
        ([[1, 2, 3]], "not a pair"),
        (["embeddings"], "not a pair"),
    ],
)
def test_pairs_that_do_not_fit(pairs: Any, message: str) -> None:
    with pytest.raises(MappingError, match=message):
        explicit(pairs, 3, 6)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(MappingError, match=r"9 is no layer of the student.*named twice.*8 is no layer of the teacher"):
        explicit([[9, 0], [0, 1], [0, 8]], 3, 6)


def test_layer_map_takes_names_and_pairs() -> None:
    assert layer_map("uniform", 3, 6) == uniform(3, 6)
    assert layer_map("skip", 3, 6, embeddings=True) == ((EMBEDDINGS, EMBEDDINGS), (0, 1), (1, 3))
    assert layer_map([[0, 2]], 3, 6) == ((0, 2),)
    assert layer_map({0: 2}, 3, 6, embeddings=True) == ((EMBEDDINGS, EMBEDDINGS), (0, 2))
    # Paired by hand already, and with another layer: left as it is.
    assert layer_map({"embeddings": 0, 0: 2}, 3, 6, embeddings=True) == ((EMBEDDINGS, 0), (0, 2))


def test_layer_map_refuses_what_it_does_not_know() -> None:
    with pytest.raises(MappingError, match=r"'unifrom'.*Did you mean 'uniform'.*first, last, skip, uniform"):
        layer_map("unifrom", 3, 6)
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
