"""The run folder: stages done once, redone when their inputs change, and nothing ever half written."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from potstill.errors import RunFolderError
from potstill.recipe import Recipe, load_recipe
from potstill.runs import (
    RunFolder,
    copy_folder,
    differences,
    digest,
    link_or_copy,
    replace_folder,
    write_json,
    write_text,
)

BASE = {
    "task": "text_classification",
    "data": {"name": "reviews"},
    "teacher": {"model": "minilm-l6", "train": {"epochs": 2}},
    "student": {"layers": 3},
    "distill": [{"terms": [{"knowledge": "logits"}], "train": {"epochs": 1}}],
}


def recipe(*overrides: str) -> Recipe:
    """The base recipe after overrides."""
    return load_recipe(BASE, overrides)


class Chain:
    """Three stages in a row, each made from the digest of the one before it, and a record of which were done."""

    def __init__(self, path: Path, siblings: Sequence[Path] = ()) -> None:
        self.path = path
        self.siblings = siblings
        self.done: list[str] = []

    def run(self, *inputs: Any, update: bool = False, stop_in: str = "") -> list[bool]:
        """Run the stages a, b and c from these inputs; whether each was reused."""
        self.done = []
        with RunFolder(self.path, recipe(), update=update, siblings=self.siblings).opened() as folder:
            before = ""
            for name, given in zip("abc", inputs, strict=True):

                def work(place: Path, name: str = name) -> dict[str, Any]:
                    (place / "half").write_text("so far")
                    if name == stop_in:
                        raise KeyboardInterrupt
                    self.done.append(name)
                    (folder.path / name).write_text("whole")
                    return {"name": name}

                stage = folder.stage(name, {"given": given, "before": before}, work, [name])
                before = stage.digest
            return [stage.reused for stage in folder.stages]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path / "run")


# ---- stages


def test_stages_that_are_done_are_reused(chain: Chain) -> None:
    assert chain.run(1, 2, 3) == [False, False, False]
    assert chain.run(1, 2, 3) == [True, True, True]
    assert chain.done == []


@pytest.mark.parametrize(("inputs", "redone"), [((9, 2, 3), "abc"), ((1, 9, 3), "bc"), ((1, 2, 9), "c")])
def test_changed_inputs_redo_their_stage_and_those_after_it(chain: Chain, inputs: tuple[int, ...], redone: str) -> None:
    chain.run(1, 2, 3)
    chain.run(*inputs)
    assert "".join(chain.done) == redone


def test_what_was_removed_is_done_again(chain: Chain) -> None:
    chain.run(1, 2, 3)
    (chain.path / "b").unlink()
    chain.run(1, 2, 3)
    assert chain.done == ["b"], "c was made from the same b"


def test_a_stage_that_was_stopped_keeps_its_working_folder(chain: Chain) -> None:
    with pytest.raises(KeyboardInterrupt):
        chain.run(1, 2, 3, stop_in="b")
    assert chain.done == ["a"]
    halves = [path.relative_to(chain.path).parts[1] for path in chain.path.glob("work/*/*/half")]
    assert halves == ["b"], "only the stage that was stopped has anything to go on from"
    chain.run(1, 2, 3)
    assert chain.done == ["b", "c"]
    assert not list(chain.path.glob("work/*"))


def test_the_working_folder_of_other_inputs_is_removed(chain: Chain) -> None:
    with pytest.raises(KeyboardInterrupt):
        chain.run(1, 2, 3, stop_in="b")
    [old] = chain.path.glob("work/b/*")
    with pytest.raises(KeyboardInterrupt):
        chain.run(1, 9, 3, stop_in="b")
    [new] = chain.path.glob("work/b/*")
    assert new != old


def test_a_stage_that_is_redone_is_not_done_until_it_is(chain: Chain) -> None:
    chain.run(1, 2, 3)
    with pytest.raises(KeyboardInterrupt):
        chain.run(1, 9, 3, stop_in="b")
    chain.run(1, 2, 3)
    assert chain.done == ["b"], "what b left is of unknown state"


# ---- whose folder it is


def test_another_recipe_is_refused_and_the_differing_keys_named(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", recipe()).opened():
        pass
    other = recipe("distill.0.train.epochs=5", "student.layers=2")
    with pytest.raises(RunFolderError) as caught, RunFolder(tmp_path / "run", other).opened():
        pass
    for said in ("student.layers: 3 -> 2", "distill.0.train.epochs: 1.0 -> 5.0", "--out", "--update"):
        assert said in str(caught.value)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text()) == recipe().as_dict(), (
        "and nothing was changed"
    )


def test_update_takes_another_recipe(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", recipe()).opened():
        pass
    other = recipe("student.layers=2")
    with RunFolder(tmp_path / "run", other, update=True).opened():
        pass
    with RunFolder(tmp_path / "run", other).opened():
        pass


def test_a_name_is_no_difference() -> None:
    assert list(differences(recipe().as_dict(), recipe("name=other").as_dict())) == []


def test_differences_reach_every_depth() -> None:
    found = list(differences({"a": {"b": [1, 2]}, "c": 1, "d": {"name": 1}}, {"a": {"b": [1, 3]}, "d": {"name": 2}}))
    assert found == ["a.b.1: 2 -> 3", "d.name: 1 -> 2", "c: 1 -> None"]


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("stranger", ["notes.txt", "recipe.yaml"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, stranger: str, update: bool) -> None:
    (tmp_path / stranger).write_text("task: mine\n")
    refused = pytest.raises(RunFolderError, match="isn't empty, and holds no run")
    with refused as caught, RunFolder(tmp_path, recipe(), update=update).opened():
        pass
    assert stranger in str(caught.value)
    assert (tmp_path / stranger).read_text() == "task: mine\n"


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="can't be made"), RunFolder(tmp_path / "run", recipe()).opened():
        pass


def test_a_folder_that_can_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def refused(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == ".lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(RunFolderError, match="Nothing can be written to"), RunFolder(tmp_path / "r", recipe()).opened():
        pass


def test_one_run_at_a_time(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from potstill.recipe import load_recipe
        from potstill.runs import RunFolder
        with RunFolder(Path(sys.argv[1]), load_recipe("reviews")).opened():
            print("open", flush=True)
            sys.stdin.read()
    """
    run = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run")]
    holder = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        refused = pytest.raises(RunFolderError, match="Another run is at work")
        with refused as caught, RunFolder(tmp_path / "run", load_recipe("reviews")).opened():
            pass
        assert "--out" in str(caught.value)
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(tmp_path / "run", load_recipe("reviews")).opened():
        pass  # a killed run leaves no lock behind


# ---- files


@pytest.mark.parametrize("write", [lambda path: write_text(path, "new"), lambda path: write_json(path, {"new": 1})])
def test_a_file_is_whole_or_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(path)
    assert path.read_text() == "old"
    write(path)
    assert "new" in path.read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [1.0, float("-inf")]}])
def test_json_holds_no_nan(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "file", {"old": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "file", value)
    assert json.loads((tmp_path / "file").read_text()) == {"old": 1}


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "file").read_text() == "new"


def test_a_copy_is_whole_and_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_text("1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "stale").write_text("")
    copy_folder(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "deep", "file"]


def test_a_copy_works_where_no_links_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("1")
    copy_folder(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == "1"


def test_a_digest_is_of_the_values_alone() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


# ---- the disk


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("PytorchStreamWriter failed writing file: No space left on device"),
    ],
)
def test_a_full_disk_is_explained(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(RunFolderError) as caught, RunFolder(tmp_path / "run", recipe()).opened():
        raise error
    for said in ("disk", "is full", "last whole checkpoint is kept", "Free some space and run the same command again"):
        assert said in str(caught.value)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), ValueError("other"), KeyboardInterrupt()])
def test_other_errors_are_left_as_they_are(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, RunFolder(tmp_path / "run", recipe()).opened():
        raise error
    assert caught.value is error


def test_too_little_disk_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_runs import tiny_recipe

    from potstill import pipeline, school

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    monkeypatch.setattr(school, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(RunFolderError, match="too little space for this run") as caught:
        pipeline.run(tiny_recipe(tmp_path), tmp_path / "run")
    assert "--out" in str(caught.value) and "GB free" in str(caught.value)


# ---- siblings


def test_a_stage_that_a_sibling_has_done_is_linked(tmp_path: Path) -> None:
    first = Chain(tmp_path / "first")
    first.run(1, 2, 3)
    second = Chain(tmp_path / "second", siblings=[tmp_path / "empty", tmp_path / "first"])
    assert second.run(1, 2, 9) == [True, True, False]
    assert second.done == ["c"]
    assert (tmp_path / "second" / "a").samefile(tmp_path / "first" / "a")
    assert second.run(1, 2, 9) == [True, True, True], "and then it is there by itself"
    first.run(7, 2, 3)
    assert (tmp_path / "second" / "a").read_text() == "whole"


def test_nothing_is_taken_from_a_sibling_that_lacks_what_the_stage_left(tmp_path: Path) -> None:
    Chain(tmp_path / "first").run(1, 2, 3)
    (tmp_path / "first" / "a").unlink()
    second = Chain(tmp_path / "second", siblings=[tmp_path / "first"])
    second.run(1, 2, 3)
    assert second.done == ["a"]


def test_a_sibling_is_copied_where_links_are_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Chain(tmp_path / "first").run(1, 2, 3)

    def no_links(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    second = Chain(tmp_path / "second", siblings=[tmp_path / "first"])
    assert second.run(1, 2, 3) == [True, True, True]
    assert not (tmp_path / "second" / "a").samefile(tmp_path / "first" / "a")


def test_a_folder_is_linked_file_by_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "weights").write_text("1")
    link_or_copy(source, tmp_path / "new" / "place")
    link_or_copy(source, tmp_path / "new" / "place")  # over what is there
    assert (tmp_path / "new/place/inner/weights").samefile(source / "inner/weights")
    write_text(tmp_path / "new/place/inner/weights", "2")
    assert (source / "inner" / "weights").read_text() == "1", "what is written goes beside and is renamed"


def test_a_key_that_came_with_a_later_version_is_no_difference(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", recipe()).opened():
        pass
    known = tmp_path / "run" / "recipe.yaml"
    older = yaml.safe_load(known.read_text())
    del older["evaluate"]["attention_similarity"]
    known.write_text(yaml.safe_dump(older))
    with RunFolder(tmp_path / "run", recipe()).opened():
        pass
    with (
        pytest.raises(RunFolderError),
        RunFolder(tmp_path / "run", recipe("evaluate.attention_similarity=true")).opened(),
    ):
        pass
