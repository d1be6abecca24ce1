"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsecbm import folders
from sparsecbm.errors import SetupError
from sparsecbm.folders import atomic_folder, check_writable, sweep


def write(target: Path, content: str) -> None:
    with atomic_folder(target) as folder:
        (folder / "file").write_text(content)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_new_folder_appears_with_its_files(tmp_path: Path) -> None:
    write(tmp_path / "a" / "target", "new")
    assert files(tmp_path) == ["a", "a/target", "a/target/file"]


def test_nothing_is_at_the_target_before_the_end(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "target") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_old_folder_is_replaced_whole(tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda left, right: False)
    target = tmp_path / "target"
    target.mkdir()
    (target / "stale").touch()
    write(target, "new")
    assert files(tmp_path) == ["target", "target/file"]
    assert (target / "file").read_text() == "new"


def test_the_old_folder_is_there_until_the_end(tmp_path: Path) -> None:
    write(tmp_path / "target", "old")
    with atomic_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("new")
        assert (tmp_path / "target" / "file").read_text() == "old"


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "target", "old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert files(tmp_path) == ["target", "target/file"]
    assert (tmp_path / "target" / "file").read_text() == "old"


def test_an_error_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "target") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert files(tmp_path) == []


def test_a_link_keeps_pointing_at_the_new_folder(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "new"


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "target") as folder:
        (folder / "file").touch(mode=0o600)
    assert (tmp_path / "target" / "file").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_is_still_to_be_made_can_be_written(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_inside_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"file/new can't be written \(Not a directory\); name another folder\.$"):
        check_writable(tmp_path / "file" / "new")


def test_a_sweep_removes_what_a_killed_write_of_this_target_left(tmp_path: Path) -> None:
    mine, another, file = tmp_path / ".target.a1b2c3d_", tmp_path / ".target.v2.a1b2c3d_", tmp_path / ".target.lock"
    for folder in (mine / "new", another, tmp_path / "target"):
        folder.mkdir(parents=True)
    file.touch()
    sweep(tmp_path / "target")
    assert files(tmp_path) == [".target.lock", ".target.v2.a1b2c3d_", "target"]


def test_a_sweep_where_nothing_is_does_nothing(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere" / "target")
    assert files(tmp_path) == []
