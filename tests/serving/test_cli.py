"""The serving room's commands: every setting is a flag, and keys are made, listed and revoked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from serving import server
from serving.settings import Settings
from tests.program import Ran, sparsecbm


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPARSECBM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The state folder, named in the environment."""
    monkeypatch.setenv("SPARSECBM_STATE_DIR", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> Ran:
    ran = sparsecbm(*arguments)
    assert ran.code == 0, ran.err
    return ran


def served(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings:
    """The settings that `serve` would serve with."""
    seen: list[Settings] = []
    monkeypatch.setattr(server, "serve", lambda settings, _: seen.append(settings))
    run("serve", *arguments)
    return seen[0]


# serve


@pytest.mark.parametrize("name", Settings.model_fields)
def test_help_shows_every_setting_with_its_variable(name: str) -> None:
    shown = " ".join(re.sub("[│╭─╮╰╯]", " ", run("serve", "--help").out).split())
    assert f"{Settings.model_fields[name].description} [env var: SPARSECBM_{name.upper()}]" in shown


OTHERS: dict[str, tuple[list[str], Any]] = {
    "bundle": (["/mine"], Path("/mine")),
    "host": (["--host", "::1"], "::1"),
    "port": (["--port", "9000"], 9000),
    "state_dir": (["--state-dir", "/state"], Path("/state")),
    "keys_file": (["--keys-file", "/keys"], Path("/keys")),
    "require_keys": (["--require-keys"], True),
    "ledger": (["--ledger", "sqlite:///x"], "sqlite:///x"),
    "allowed_hosts": (["--allowed-host", "a.example", "--allowed-host", "b.example"], ["a.example", "b.example"]),
    "log_level": (["--log-level", "debug"], "debug"),
}


@pytest.mark.parametrize(("name", "flags", "value"), [(name, *rest) for name, rest in OTHERS.items()])
def test_flag_sets_its_setting_and_no_other(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: list[str], value: object
) -> None:
    given, default = served(monkeypatch, *flags).model_dump(), Settings().model_dump()
    assert {key for key in given if given[key] != default[key]} == {name}
    assert given[name] == value


@pytest.mark.parametrize("given", ["a.example,b.example", "a.example b.example"])
def test_list_in_the_environment_is_one(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("SPARSECBM_ALLOWED_HOSTS", given)
    assert served(monkeypatch).allowed_hosts == ["a.example", "b.example"]


# keys


def test_created_key_alone_is_on_standard_output(state: Path) -> None:
    result = run("keys", "create", "--name", "ada", "--role", "correct")
    assert re.fullmatch(r"sparsecbm_[\w-]{43}\n", result.out)
    assert "key " in result.err and "ada, who may correct" in result.err


def test_created_key_is_shown_this_once(state: Path) -> None:
    key = run("keys", "create", "--name", "ada", "--role", "correct").out.strip()
    listed = run("keys", "list").out
    assert "ada" in listed and key not in listed and key not in (state / "keys.json").read_text()


def test_keys_are_listed_as_json(state: Path) -> None:
    made = json.loads(run("keys", "create", "--name", "ada", "--role", "operate", "--json").out)
    assert made.pop("key").startswith("sparsecbm_")
    assert json.loads(run("keys", "list", "--json").out) == [made]
    assert (made["name"], made["role"]) == ("ada", "operate")


def test_revoked_key_is_not_listed(state: Path) -> None:
    ids = [
        json.loads(run("keys", "create", "--name", name, "--role", "predict", "--json").out)["id"]
        for name in ("ada", "bob")
    ]
    assert "key " in run("keys", "revoke", ids[0]).out
    assert [key["id"] for key in json.loads(run("keys", "list", "--json").out)] == ids[1:]


def test_unknown_id_is_refused(state: Path) -> None:
    ran = sparsecbm("keys", "revoke", "ada")
    assert ran.code == 2 and "no key with the id 'ada'" in ran.err


def test_unknown_role_is_refused_with_the_known_ones(state: Path) -> None:
    ran = sparsecbm("keys", "create", "--name", "ada", "--role", "king")
    assert ran.code == 2 and "'predict', 'correct', 'operate'" in ran.err


def test_file_may_be_named(tmp_path: Path) -> None:
    run("keys", "create", "--name", "ada", "--role", "predict", "--keys-file", str(tmp_path / "mine.json"))
    assert (tmp_path / "mine.json").exists()
