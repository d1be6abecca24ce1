"""Keys: what is kept of them, what is refused, and changes on disk."""

from __future__ import annotations

import hmac
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving import keys
from serving.keys import ROLES, Keyring, Role
from sparsecbm.errors import SetupError, UnavailableError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "keys.json"


@pytest.fixture(autouse=True)
def looking_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOOK_S", 0.0)


def make(path: Path, name: str = "ada", role: Role = "predict") -> str:
    return keys.create(path, name, role)[0]


def test_key_is_long_and_random(path: Path) -> None:
    made = {make(path) for _ in range(10)}
    assert len(made) == 10
    assert all(re.fullmatch(r"sparsecbm_[\w-]{43}", key) for key in made)  # 43 characters of 6 bits hold 256


def test_file_holds_no_key(path: Path) -> None:
    made = make(path)
    assert made not in path.read_text() and made.removeprefix("sparsecbm_") not in path.read_text()


def test_file_is_the_users_alone(path: Path) -> None:
    make(path)
    assert path.stat().st_mode & 0o777 == 0o600
    keys.revoke(path, keys.read(path)[0].id)
    assert path.stat().st_mode & 0o777 == 0o600


def test_file_says_its_format(path: Path) -> None:
    make(path)
    assert json.loads(path.read_text())["version"] == 1


def test_keys_are_listed_as_they_were_made(path: Path) -> None:
    for name, role in (("ada", "operate"), ("bob@example.org", "predict"), ("ada", "correct")):
        make(path, name, role)  # type: ignore[arg-type]
    found = [(key.name, key.role) for key in keys.read(path)]
    assert found == [("ada", "operate"), ("bob@example.org", "predict"), ("ada", "correct")]


def test_without_a_file_there_are_no_keys(path: Path) -> None:
    assert keys.read(path) == []


@pytest.mark.parametrize("name", ["", " ", " ada", "-ada", "ada\n", "ada\x1b[2J", "a" * 65, "a/b", '"'])
def test_name_that_is_none_is_refused(path: Path, name: str) -> None:
    with pytest.raises(SetupError, match="can't be the name of a key"):
        make(path, name)
    assert not path.exists()


@pytest.mark.parametrize("name", ["Ada Lovelace", "ada@example.org", "李", "ci-1", "2"])
def test_name_of_a_person_or_program_is_taken(path: Path, name: str) -> None:
    make(path, name)
    assert [key.name for key in keys.read(path)] == [name]


def test_revoked_key_is_gone_and_the_others_stay(path: Path) -> None:
    for name in ("ada", "bob", "cleo"):
        make(path, name)
    revoked = keys.revoke(path, keys.read(path)[1].id)
    assert revoked.name == "bob"
    assert [key.name for key in keys.read(path)] == ["ada", "cleo"]


def test_revoking_what_is_not_there_is_refused(path: Path) -> None:
    make(path)
    before = path.read_bytes()
    with pytest.raises(SetupError, match="no key with the id 'ada'"):
        keys.revoke(path, "ada")
    assert path.read_bytes() == before


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: make(path, f"k{at}"), range(40)))
    assert {key.name for key in keys.read(path)} == {f"k{at}" for at in range(40)}


def test_change_that_fails_leaves_the_file_and_nothing_beside_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="can't be written: No space left on device"):
        make(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_that_root_changes_stays_its_owners(path: Path) -> None:
    make(path)
    os.chown(path, 1234, 1234)
    make(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_write_is_refused(path: Path, mode: int) -> None:
    make(path)
    path.chmod(mode)
    with pytest.raises(SetupError, match="chmod 600"):
        keys.read(path)


def test_file_that_others_may_read_is_taken(path: Path) -> None:
    make(path)
    path.chmod(0o444)
    assert len(keys.read(path)) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"name": "ada"}]}', "\x00"]
)
def test_file_of_something_else_is_refused(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(SetupError, match="is not a file of keys"):
        keys.read(path)
    with pytest.raises(SetupError, match="is not a file of keys"):
        make(path)
    assert path.read_text() == content


def test_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(SetupError, match="Is a directory"):
        keys.read(path)


@pytest.mark.parametrize("held", ROLES)
@pytest.mark.parametrize("needed", ROLES)
def test_role_reaches_as_far_as_itself(path: Path, held: Role, needed: Role) -> None:
    order = ["predict", "correct", "operate"]
    _, key = keys.create(path, "ada", held)
    assert key.may(needed) == (order.index(held) >= order.index(needed))


# Keyring


def test_key_is_found_among_others(path: Path) -> None:
    made = {name: make(path, name) for name in ("ada", "bob", "cleo")}
    ring = Keyring(path)
    for name, key in made.items():
        found = ring.find(key.encode())
        assert found is not None and found.name == name


@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key + "x", str.upper, lambda _: ""])
def test_other_key_is_not_found(path: Path, change: object) -> None:
    assert callable(change)
    assert Keyring(path).find(change(make(path)).encode()) is None


def test_hash_in_place_of_the_key_is_not_found(path: Path) -> None:
    make(path)
    assert Keyring(path).find(keys.read(path)[0].sha256.encode()) is None


def test_all_hashes_are_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make(path, name) for name in ("ada", "bob", "cleo")]
    compared: list[str] = []

    def compare(left: str, right: str) -> bool:
        compared.append(left)
        return left == right

    ring = Keyring(path)
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (*made, "none"):
        compared.clear()
        ring.find(given.encode())
        assert compared == [key.sha256 for key in keys.read(path)]


def test_key_made_later_is_found(path: Path) -> None:
    ring = Keyring(path)
    assert ring.find(b"any") is None
    assert ring.find(make(path).encode()) is not None


def test_key_revoked_later_is_not_found(path: Path) -> None:
    made = make(path)
    ring = Keyring(path)
    assert ring.find(made.encode()) is not None
    keys.revoke(path, keys.read(path)[0].id)
    assert ring.find(made.encode()) is None


def test_removed_file_takes_all_keys_away(path: Path) -> None:
    made = make(path)
    ring = Keyring(path)
    assert ring.find(made.encode()) is not None
    path.unlink()
    assert ring.find(made.encode()) is None


def test_broken_file_lets_nobody_in_until_it_is_mended(path: Path) -> None:
    made = make(path)
    ring = Keyring(path)
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    for _ in range(2):
        with pytest.raises(UnavailableError, match="keys can't be read"):
            ring.find(made.encode())
    path.write_bytes(good)
    assert ring.find(made.encode()) is not None


def test_file_is_looked_at_once_a_second_at_most(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOOK_S", 1.0)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ring = Keyring(path)
    assert ring.find(b"") is None
    made = make(path)
    assert ring.find(made.encode()) is None
    now += 1.0
    assert ring.find(made.encode()) is not None
