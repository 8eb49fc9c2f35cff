"""Unpacking that trusts no path in an archive, and the one place that starts pip."""

import os
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from small_archives import tarred, zipped

from potstill.data import archives, registry
from potstill.errors import SampleError


@pytest.mark.parametrize("name", ["../out", "/abs", "a/../../out", "a\\b", "C:x", ""])
def test_a_name_that_points_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SampleError, match="points out of its folder"):
        archives.safe_path(tmp_path, name)


def test_zip_with_a_way_out_writes_nothing_outside(tmp_path: Path) -> None:
    file = zipped(tmp_path / "bad.zip", {"model/../../out.txt": b"x"})
    with pytest.raises(SampleError, match="points out"):
        archives.unzip(file, "model", tmp_path / "target")
    assert not (tmp_path / "out.txt").exists()


def test_zip_with_a_link_and_without_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "link.zip"
    with zipfile.ZipFile(file, "w") as out:
        info = zipfile.ZipInfo("model/link")
        info.external_attr = 0o120777 << 16
        out.writestr(info, "/etc/passwd")
    with pytest.raises(SampleError, match="holds a link"):
        archives.unzip(file, "model", tmp_path / "target")
    with pytest.raises(SampleError, match="no folder 'other'"):
        archives.unzip(file, "other", tmp_path / "target")


def test_tar_takes_regular_files_only(tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    with tarfile.open(file, "w:gz") as out:
        link = tarfile.TarInfo("a/x.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    assert archives.untar(file, lambda name: True, tmp_path / "target") == []
    with pytest.raises(SampleError, match="points out"):
        archives.untar(tarred(tmp_path / "y.tar.gz", {"../x.txt": b""}), lambda name: True, tmp_path / "target")


def test_pip_is_started_ticked_and_read(tmp_path: Path) -> None:
    ticks: list[int] = []
    code, output = registry.run_pip(["no-such-command"], tmp_path, lambda: ticks.append(1))
    assert code != 0 and "unknown command" in output and ticks


def test_pip_is_ended_when_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    popen = registry.subprocess.Popen

    def sleeping(command: list[str], **options: Any) -> Any:
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    monkeypatch.setattr(registry.subprocess, "Popen", sleeping)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.run_pip(["download"], tmp_path, interrupt)
    assert started[0].poll() is not None


def test_progress_bears_with_folders_and_files_that_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.whl").write_bytes(b"123")
    scan, stat = os.scandir, os.stat

    def scandir(path: Any) -> Any:
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return scan(path)

    def stat_of(path: Any, **options: Any) -> Any:
        if Path(path).name == "b.whl":
            raise FileNotFoundError(path)
        return stat(path, **options)

    (tmp_path / "b.whl").write_bytes(b"1")
    shown = registry._Shown("x", 10, tmp_path, {"a.whl", "b.whl"})
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", stat_of)
    shown.update()
    monkeypatch.undo()
    assert shown.bar.tasks[0].completed == 3
