"""Two processes keep what a recipe asks of its teacher: one cache, each row once, mended by both."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cached_training import recipe
from tiny_ranks import RANKS, on_two_ranks

from potstill import ranks
from potstill.cache import Cache, caches, open_cache
from potstill.pipeline import cache as keep


def late_to_look() -> None:
    """Let a rank open what was written only after the other could have measured it, and have gone on."""
    before = Cache.reopened

    def reopened(cache: Cache) -> Cache:
        time.sleep(1.5)
        return before(cache)

    Cache.reopened = reopened  # type: ignore[method-assign]


def damage(root: Path) -> int:
    """Cut a byte off one shard; how many rows it held."""
    shard = open_cache(caches(root)[0]).shards[0]
    rows = len(shard.keys)
    shard.path.write_bytes(shard.path.read_bytes()[:-1])
    return rows


def keep_twice(made: dict[str, Any], out: Path) -> dict[str, Any]:
    """What is recorded of a cache when it is written, and when a shard was damaged since."""
    with ranks.together():
        if not ranks.is_main():
            late_to_look()
        first = keep(made, out)["teacher"]
        ranks.wait()  # the late one reads, too, before anything is damaged
        broken = ranks.on_main(lambda: damage(out / "cache"))
        ranks.wait()
        return {"first": first, "broken": broken, "second": keep(made, out)["teacher"], "agree": ranks.same(first)}


def test_two_ranks_keep_one_cache_and_mend_it(tmp_path: Path) -> None:
    found = on_two_ranks(keep_twice, tmp_path, recipe(tmp_path), tmp_path / "out")
    [folder] = caches(tmp_path / "out" / "cache")
    cache = open_cache(folder)
    keys = np.concatenate([shard.keys for shard in cache.shards])
    assert len(keys) == len(np.unique(keys)) == cache.rows, "each row once"
    assert len(cache.shards) == RANKS and not cache.damaged
    assert len(list(cache.leftovers())) == 1, "the damaged shard, set aside once"
    for one in found:
        assert not isinstance(one, Exception), one
        assert one["agree"] and one["first"]["fidelity"] is not None
        assert one["first"]["written_rows"] == one["first"]["rows"] == cache.rows
        assert one["second"]["written_rows"] == one["broken"] > 0


def test_a_shard_that_another_process_has_set_aside_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.cache import store

    keep(recipe(tmp_path), tmp_path / "out")
    damage(tmp_path / "out" / "cache")
    [folder] = caches(tmp_path / "out" / "cache")
    seen = open_cache(folder)
    assert len(seen.damaged) == 1
    files = store.shard_files(folder / "shards")
    assert [path.name for path in store.set_damaged_aside(seen)] == [f"{seen.damaged[0].name}.damaged"]
    assert store.set_damaged_aside(seen) == []
    monkeypatch.setattr(store, "shard_files", lambda _folder: files)  # as they were listed before
    assert open_cache(folder).rows == 0
