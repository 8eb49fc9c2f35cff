"""`potstill cache`: a recipe's knowledge kept, looked at, verified and pruned, as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cached_training import recipe
from typer.testing import CliRunner

from potstill.cache import caches, open_cache
from potstill.cli import app


def typed(*words: Any) -> Any:
    return CliRunner().invoke(app, ["cache", *map(str, words)])


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Path]:
    """A recipe's file, and the run folder in which its knowledge was kept."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path)))
    found = typed(file, "distill.0.train.epochs=3", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "B a token" in found.output
    assert "logits: KL" in found.output
    return file, tmp_path / "out"


def test_a_recipe_is_kept_looked_at_damaged_and_mended(kept: tuple[Path, Path]) -> None:
    file, out = kept
    said = typed("info", out).output
    assert "bert, 4 layers of width 32" in said
    assert "hidden.-1" in said
    assert typed("verify", out).exit_code == 0
    cache = open_cache(caches(out / "cache")[0])
    shard = cache.shards[0].path
    shard.write_bytes(shard.read_bytes()[:-1])
    found = typed("verify", out)
    assert found.exit_code == 1
    assert str(shard.name) in found.output.replace("\n", "")
    again = typed("write", file, "distill.0.train.epochs=3", "--out", out)
    assert again.exit_code == 0, again.output
    assert typed("verify", out).exit_code == 0
    pruned = typed("prune", out)
    assert ".damaged" in pruned.output.replace("\n", "")
    assert not list(out.rglob("*.damaged"))
    assert typed("prune", out, "--all").exit_code == 0
    assert caches(out / "cache") == []


def test_a_cache_of_another_format_is_removed_with_all(kept: tuple[Path, Path]) -> None:
    folder = caches(kept[1] / "cache")[0]
    manifest = folder / "manifest.json"
    found = json.loads(manifest.read_text())
    found["identity"]["format"] = 0
    manifest.write_text(json.dumps(found))
    refused = typed("prune", kept[1])
    assert refused.exit_code == 1 and "prune --all" in str(refused.exception)
    assert typed("prune", kept[1], "--all").exit_code == 0 and not folder.exists()


def test_a_folder_that_only_has_a_manifest_is_no_cache(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "manifest.json").write_text('{"name": "my web app"}')
    for place in (tmp_path, site):
        assert typed("prune", place, "--all").exit_code == 1 and (site / "manifest.json").exists()


def test_help_names_recipe_and_commands_and_parts_are_checked(tmp_path: Path) -> None:
    said = typed("--help").output
    assert "RECIPE" in said
    assert all(name in said for name in ("info", "verify", "prune"))
    found = typed("nowhere.yaml", "--part", "one of four")
    assert found.exit_code == 2
    assert "1/4" in found.output
    missing = typed("info", tmp_path)
    assert missing.exit_code != 0
    assert "holds no cache" in str(missing.exception)
