"""A cache: written once, found again by content, and read back as what was observed, in any order and padding."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_rows, tiny_tokenizer

from potstill.cache import (
    CachedTeacher,
    Identity,
    Storage,
    find,
    measure,
    nearest,
    open_cache,
    row_keys,
    row_lengths,
    teacher_digest,
    tokenizer_digest,
    write_cache,
)
from potstill.cache.columns import Codec, Column
from potstill.cache.shards import is_whole, shard_files
from potstill.errors import CacheError
from potstill.knowledge import Needs, Observer, observe
from potstill.tasks import TextClassification

TASK = TextClassification()
EVERYTHING = Needs(
    logits=True,
    hidden=frozenset({-1, 0, 2}),
    attention=frozenset({1}),
    scores=frozenset({1}),
    queries=frozenset({2}),
    keys=frozenset({2}),
    values=frozenset({0, 2}),
)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return TASK.encode(tiny_rows(40), tokenizer, max_length=16)


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(layers=3, seed=3, attn_implementation="eager")


def identity(teacher, tokenizer, needs=EVERYTHING, **storage):
    kept = Storage(**{"precision": "float32", **storage})
    return Identity(teacher_digest(teacher), tokenizer_digest(tokenizer), needs, 16, storage=kept)


def written(root, teacher, tokenizer, rows, needs=EVERYTHING, shard_bytes=20_000, **storage):
    asked = identity(teacher, tokenizer, needs, **storage)
    return write_cache(root, asked, teacher, rows, TASK.collator(tokenizer), shard_bytes=shard_bytes)


def recalled(cache, rows, numbers, collate, needs=EVERYTHING):
    """What a cache gives for the rows of these numbers, padded like their batch."""
    source = CachedTeacher(cache)
    batch = collate([rows[number] for number in numbers])
    batch |= source.lookup("teacher", rows, needs)(numbers, batch)
    return source.recall("teacher", needs)(batch), batch


def kept(known, batch):
    """Every tensor of what is known, zeros where the row has no token, by name."""
    mask = batch["attention_mask"].bool()
    found = {"logits": known.logits}
    for kind in ("hidden", "attention", "scores", "queries", "keys", "values"):
        for layer, tensor in getattr(known, kind).items():
            token = {"hidden": mask[..., None], "attention": mask[:, None, :, None] & mask[:, None, None, :]}
            token["scores"] = token["attention"]
            own = token.get(kind, mask[:, None, :, None])
            found[f"{kind} {layer}"] = tensor.float().masked_fill(~own, 0.0)
    return found


@pytest.mark.parametrize(("family", "side"), [("bert", "right"), ("llama", "left")])
def test_what_is_read_back_is_what_was_observed_in_any_order_and_padding(tmp_path, rows, family, side):
    tokenizer, teacher = tiny_tokenizer(side), tiny_model(family, layers=3, seed=3, attn_implementation="eager")
    # Rotated queries and keys tell where in the padded row a token stands; their products don't.
    needs = EVERYTHING if side == "right" else replace(EVERYTHING, queries=frozenset(), keys=frozenset())
    cache = written(tmp_path, teacher, tokenizer, rows, needs).cache
    collate = TASK.collator(tokenizer)
    assert len(cache.shards) > 3
    shuffled = np.random.default_rng(1).permutation(len(rows)).tolist()
    for numbers in (shuffled[:7], shuffled[7:9], [5], [3, 3]):
        known, batch = recalled(cache, rows, numbers, collate, needs)
        live = observe(teacher, collate([rows[number] for number in numbers]), needs)
        ours, theirs = kept(known, batch), kept(live, batch)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4, msg=name)
        assert torch.equal(known.mask, live.mask)


@pytest.mark.parametrize(("precision", "error"), [("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 1e-2)])
def test_a_lower_precision_is_near_by_so_much(tmp_path, rows, teacher, tokenizer, precision, error):
    cache = written(tmp_path, teacher, tokenizer, rows, precision=precision).cache
    whole = written(tmp_path, teacher, tokenizer, rows).cache
    collate, numbers = TASK.collator(tokenizer), list(range(20))
    known, batch = recalled(cache, rows, numbers, collate)
    live, _ = recalled(whole, rows, numbers, collate)
    ours, theirs = kept(known, batch), kept(live, batch)
    for name in theirs:
        apart = (ours[name] - theirs[name]).norm() / theirs[name].norm()
        assert 0 < apart < error, name
    assert cache.bytes < {"int8": 0.45}.get(precision, 0.6) * whole.bytes
    found = measure(cache, Observer(teacher, EVERYTHING), rows, collate)
    assert 0 < found["columns"]["hidden.2"]["relative_error"] < error
    assert 0 <= found["columns"]["logits"]["kl"] < 1e-3
    assert found["columns"]["logits"]["mass"] == 1
    assert found["bytes_a_row"] == cache.bytes / len(rows)


@pytest.mark.parametrize(("precision", "error"), [("float16", 1e-3), ("int8", 1e-2)])
def test_a_score_that_is_ruled_out_comes_back_as_the_lowest_number(tmp_path, tokenizer, rows, precision, error):
    needs = Needs(scores=frozenset({0}))
    teacher = tiny_model("llama", layers=1, attn_implementation="eager")
    cache = written(tmp_path, teacher, tokenizer, rows, needs, precision=precision).cache
    known, batch = recalled(cache, rows, [0], TASK.collator(tokenizer), needs)
    found = known.scores[0][0, 0]
    above = found.triu(1)
    assert above[above != 0].unique().tolist() == [torch.finfo(torch.float32).min]
    live = observe(teacher, batch, needs).scores[0][0, 0]
    assert 0 < (found - live).tril().norm() < error * live.tril().norm()


def test_in_int8_only_scores_are_ruled_out():
    row = torch.tensor([[-70_000.0, 35_000.0]])
    for kind, expected in (("hidden", -70_000.0), ("scores", torch.finfo(torch.float32).min)):
        codec = Codec(Column(kind, (1, 2), 0), Storage("int8"))
        parts = codec.encode(row)
        back = codec.dense({"": parts[""].view(1, 2), "scales": parts["scales"].view(1)})
        assert back[0, 0] == pytest.approx(expected) and back[0, 1] == pytest.approx(35_000.0, rel=0.01)


def test_how_near_it_comes_is_measured_on_what_is_read_back(tmp_path, rows, teacher, tokenizer):
    needs = Needs(logits=True, hidden=frozenset({1}))
    cache = written(tmp_path, teacher, tokenizer, rows, needs).cache
    own = measure(cache, Observer(teacher, needs), rows, TASK.collator(tokenizer))
    assert own["rows"] == len(rows) and own["columns"]["hidden.1"]["relative_error"] < 1e-4
    other = measure(cache, Observer(tiny_model(seed=1), needs), rows, TASK.collator(tokenizer))
    assert other["columns"]["hidden.1"]["relative_error"] > 0.1 and other["columns"]["logits"]["kl"] > 1e-3

    def cut(batch):
        return {
            name: value[:, :3] if value.ndim == 2 else value for name, value in TASK.collator(tokenizer)(batch).items()
        }

    with pytest.raises(CacheError, match="isn't what is observed of it"):
        measure(cache, Observer(teacher, needs), rows, cut)


def test_less_is_served_and_more_is_refused(tmp_path, rows, teacher, tokenizer):
    held = Needs(logits=True, hidden=frozenset({0, 1}))
    cache = written(tmp_path, teacher, tokenizer, rows, held).cache
    asked = Needs(hidden=frozenset({1}))
    known, _ = recalled(cache, rows, [4, 2], TASK.collator(tokenizer), asked)
    assert known.logits is None
    assert known.hidden.keys() == {1}
    assert find(tmp_path, identity(teacher, tokenizer, asked)).folder == cache.folder
    again = written(tmp_path, teacher, tokenizer, rows, asked)
    assert (again.rows, again.cache.folder) == (0, cache.folder)
    with pytest.raises(CacheError, match="hidden of layers 2"):
        CachedTeacher(cache).recall("teacher", Needs(hidden=frozenset({1, 2})))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": "other"}, "weights or config"),
        ({"tokenizer": "other"}, "tokenizer"),
        ({"max_length": 17}, "max_length: 16 in the cache, 17 here"),
        ({"runs_in": "bfloat16"}, "precision that the teacher runs in: float32 in the cache, bfloat16 here"),
        ({"storage": Storage("float16")}, "precision it is kept with: float32 in the cache, float16 here"),
        ({"needs": Needs(values=frozenset({1}))}, "values of layers 1"),
        ({"format": 0}, "format"),
    ],
)
def test_any_difference_is_refused_and_named(tmp_path, rows, teacher, tokenizer, change, named):
    cache = written(tmp_path, teacher, tokenizer, rows, Needs(logits=True)).cache
    other = replace(identity(teacher, tokenizer, Needs(logits=True)), **change)
    assert find(tmp_path, other) is None
    assert named in nearest(tmp_path, other)
    with pytest.raises(CacheError, match=named):
        cache.require(other)
    cache.require(identity(teacher, tokenizer, Needs(logits=True)))


def test_weights_that_changed_are_another_teacher_and_a_name_that_changed_is_not(teacher, tokenizer):
    other = tiny_model(layers=3, seed=3, attn_implementation="eager")
    assert teacher_digest(other) == teacher_digest(teacher)
    other.config._name_or_path = "elsewhere"
    assert teacher_digest(other) == teacher_digest(teacher)
    with torch.no_grad():
        other.classifier.bias[0] += 1e-6
    assert teacher_digest(other) != teacher_digest(teacher)
    before = tokenizer_digest(tokenizer)
    tokenizer(["the film"], truncation=True, max_length=3)
    assert tokenizer_digest(tokenizer) == before
    tokenizer_with_more = tiny_tokenizer()
    tokenizer_with_more.add_tokens(["more"])
    assert tokenizer_digest(tokenizer_with_more) != before


def test_keys_are_of_the_input_alone_whatever_holds_it(rows, tokenizer):
    keys = row_keys(rows)
    assert len(np.unique(keys)) == len({str(row["input_ids"]) for row in rows})
    order = np.random.default_rng(0).permutation(len(rows))
    assert (row_keys(rows.select(order.tolist())) == keys[order]).all()
    relabelled = rows.remove_columns("labels").add_column("labels", [1] * len(rows)).add_column("row", order)
    assert (row_keys(relabelled) == keys).all()
    shorter = TASK.encode(tiny_rows(40), tokenizer, max_length=5)
    assert not set(row_keys(shorter)) & set(keys[row_lengths(rows) > 5])
    prefixed = rows.rename_column("input_ids", "teacher_input_ids")
    own = rows.column_names
    renamed = prefixed.rename_columns({n: f"teacher_{n}" for n in own if n == "token_type_ids"})
    assert (row_keys(renamed.add_column("input_ids", [[1]] * len(rows)), "teacher_") == keys).all()


def test_rows_are_added_and_none_is_written_twice(tmp_path, teacher, tokenizer, rows):
    needs = Needs(logits=True)
    first = written(tmp_path, teacher, tokenizer, rows.select(range(10)), needs)
    both = written(tmp_path, teacher, tokenizer, rows, needs)
    distinct = len(np.unique(row_keys(rows)))
    assert both.cache.rows == distinct
    assert first.rows + both.rows == distinct
    assert written(tmp_path, teacher, tokenizer, rows, needs).rows == 0
    with pytest.raises(CacheError, match=r"lacks .* of the 40 rows"):
        CachedTeacher(first.cache).lookup("teacher", rows, needs)


def test_a_damaged_shard_is_found_named_and_written_again(tmp_path, teacher, tokenizer, rows):
    needs = Needs(logits=True, hidden=frozenset({1}))
    cache = written(tmp_path, teacher, tokenizer, rows, needs).cache
    broken = cache.shards[1].path
    held = bytearray(broken.read_bytes())
    held[-20] ^= 1
    time.sleep(0.01)
    broken.write_bytes(bytes(held))
    found = open_cache(cache.folder)
    assert found.damaged == (broken,)
    with pytest.raises(CacheError, match="1 damaged"):
        CachedTeacher(found).lookup("teacher", rows, needs)
    again = written(tmp_path, teacher, tokenizer, rows, needs)
    assert 0 < again.rows < len(rows)
    assert [path.name for path in again.replaced] == [f"{broken.name}.damaged"]
    known, batch = recalled(again.cache, rows, list(range(40)), TASK.collator(tokenizer), needs)
    live = observe(teacher, TASK.collator(tokenizer)(rows.to_list()), needs)
    for name, tensor in kept(live, batch).items():
        torch.testing.assert_close(kept(known, batch)[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_shard_that_was_cut_short_is_damaged(tmp_path, teacher, tokenizer, rows):
    cache = written(tmp_path, teacher, tokenizer, rows, Needs(logits=True)).cache
    path = cache.shards[0].path
    path.write_bytes(path.read_bytes()[:-8])
    assert not is_whole(path)


def test_several_processes_write_parts_of_one_cache(tmp_path, teacher, tokenizer, rows):
    asked = identity(teacher, tokenizer, Needs(logits=True))
    collate = TASK.collator(tokenizer)
    taken = [write_cache(tmp_path, asked, teacher, rows, collate, part=(number, 3)) for number in range(3)]
    assert taken[-1].cache.rows == len(np.unique(row_keys(rows)))
    assert all(one.rows for one in taken)
    again = [write_cache(tmp_path, asked, teacher, rows, collate, part=(number, 3)).rows for number in range(3)]
    assert again == [0, 0, 0]


KILLED = """
import sys
from pathlib import Path
from test_cache import *
import potstill.cache.write as write

rows = TASK.encode(tiny_rows(40), tiny_tokenizer(), max_length=16)
teacher = tiny_model(layers=3, seed=3, attn_implementation="eager")
shards, before = 0, write.write_shard

def slow(*given):
    global shards
    shards += 1
    if shards == 3:
        (given[0] / f"{write_prefix()}9.part").write_bytes(b"half")
        print("now", flush=True)
        time.sleep(60)
    return before(*given)

from potstill.cache.shards import unfinished_prefix as write_prefix
write.write_shard = slow
written(Path(sys.argv[1]), teacher, tiny_tokenizer(), rows)
"""


def test_a_writer_that_was_killed_is_gone_on_with(tmp_path, teacher, tokenizer, rows):
    paths = os.pathsep.join([*sys.path, os.path.dirname(__file__)])
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    started = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "now\n"
    started.send_signal(signal.SIGKILL)
    started.wait()
    started.stdout.close()
    cache = find(tmp_path, identity(teacher, tokenizer))
    assert len(shard_files(cache.folder / "shards")) == 2
    assert 0 < cache.rows < len(np.unique(row_keys(rows)))
    assert [path.suffix for path in cache.leftovers()] == [".part"]
    again = written(tmp_path, teacher, tokenizer, rows)
    assert again.rows == len(np.unique(row_keys(rows))) - cache.rows
    whole = written(tmp_path / "at once", teacher, tokenizer, rows)
    assert {path.name for path in shard_files(again.cache.folder / "shards")} >= {
        path.name for path in shard_files(cache.folder / "shards")
    }
    assert again.cache.rows == whole.cache.rows


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, teacher, tokenizer, rows, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(CacheError, match=r"too little space for the cache.* rows"):
        written(tmp_path, teacher, tokenizer, rows)
    assert not list(tmp_path.glob("*/shards/*"))


def test_the_estimate_is_the_bytes_that_are_written(tmp_path, teacher, tokenizer, rows):
    from potstill.cache import plan_work

    for storage in ({"precision": "float16"}, {"precision": "int8"}):
        cache = written(tmp_path, teacher, tokenizer, rows, **storage).cache
        empty = replace(cache, shards=())
        work = plan_work(empty, row_keys(rows), row_lengths(rows))
        headers = sum(int.from_bytes(one.path.read_bytes()[:8], "little") + 8 for one in cache.shards)
        assert abs(cache.bytes - headers - work.bytes) <= 8 * 20 * len(cache.shards)  # alignment


def test_nothing_in_a_cache_is_a_pickle(tmp_path, teacher, tokenizer, rows):
    cache = written(tmp_path, teacher, tokenizer, rows).cache
    files = {path.suffix for path in cache.folder.rglob("*") if path.is_file()}
    assert files == {".json", ".safetensors"}


def test_a_batch_that_was_changed_is_refused(tmp_path, teacher, tokenizer, rows):
    needs = Needs(hidden=frozenset({1}))
    cache = written(tmp_path, teacher, tokenizer, rows, needs).cache
    batch = TASK.collator(tokenizer)([{**rows[0], "input_ids": rows[0]["input_ids"][:-1]}])
    with pytest.raises(CacheError, match="as they were when the teacher saw them"):
        CachedTeacher(cache).lookup("teacher", rows, needs)([0], batch)
