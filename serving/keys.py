"""API keys: made for a name and a role, shown once, and kept as hashes in one file."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparsecbm.errors import SetupError, UnavailableError

_log = structlog.get_logger()

Role = Literal["predict", "correct", "operate"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do all that the ones before it may

_PREFIX = "sparsecbm_"  # by which scanners of published code know a key
_ENTROPY_BYTES = 32
_LOOK_S = 1.0  # between looks at the file


class Key(BaseModel):
    """What is kept of a key.

    Its hash is one round of SHA-256: a key is 256 random bits, which nobody finds by trying, so what makes the hash of
    a password slow and salted would only make every request slow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, pattern=r"^\w[\w .@+-]*$")
    role: Role
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created_at: datetime

    @property
    def id(self) -> str:
        """What the key is called where it is listed and revoked; several may have one name."""
        return self.sha256[:12]

    def may(self, role: Role) -> bool:
        """Whether its role reaches as far as another."""
        return ROLES.index(self.role) >= ROLES.index(role)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[Key] = []


def create(path: Path, name: str, role: Role) -> tuple[str, Key]:
    """Makes a key and keeps its hash.

    Args:
        path: the file of keys; it and its folder are made where they are missing.
        name: whose key it is, as the ledger will say.
        role: what it may do.

    Returns:
        The key itself, which nothing shows again, and what is kept of it.

    Raises:
        SetupError: the name is none, or the file can't be read or written.
    """
    given = _PREFIX + secrets.token_urlsafe(_ENTROPY_BYTES)
    try:
        key = Key(name=name, role=role, sha256=_hash(given.encode()), created_at=datetime.now(UTC))
    except ValidationError as error:
        raise SetupError(
            f"{name!r} can't be the name of a key: give up to 64 letters, digits, spaces and . @ + - _, "
            "with a letter or digit first."
        ) from error
    _change(path, lambda keys: [*keys, key])
    return given, key


def revoke(path: Path, id: str) -> Key:
    """Takes a key away; running servers refuse it within seconds.

    Returns:
        What was kept of it.

    Raises:
        SetupError: there is none of this id, or the file can't be read or written.
    """
    revoked: list[Key] = []

    def without(keys: list[Key]) -> list[Key]:
        revoked.extend(key for key in keys if key.id == id)
        if not revoked:
            raise SetupError(
                f"There is no key with the id {id!r} in {path}; 'sparsecbm keys list' shows those there are."
            )
        return [key for key in keys if key not in revoked]

    _change(path, without)
    return revoked[0]


def read(path: Path) -> list[Key]:
    """The keys of a file, oldest first; none where there is no file.

    Raises:
        SetupError: it can't be read, is no file of keys, or others than its owner may write it.
    """
    try:
        with path.open("rb") as file:
            # Whoever reads hashes gets no key; whoever writes them makes keys.
            if os.fstat(file.fileno()).st_mode & 0o022:
                raise SetupError(f"Others may write the keys in {path}, and so make some: run 'chmod 600 {path}'.")
            return _File.model_validate_json(file.read()).keys
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"The keys in {path} can't be read: {error.strerror}.") from error
    except ValidationError as error:
        raise SetupError(
            f"{path} is not a file of keys that this version can read. 'sparsecbm keys create' makes one where "
            "there is none."
        ) from error


class Keyring:
    """The keys of a file as it is now: a change on disk holds within a second or so.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: list[Key] | None = []
        self._mark: object = None
        self._next_look = 0.0

    def find(self, given: bytes) -> Key | None:
        """The key that was given, or None if there is no such key.

        It takes as long whatever is given: hashes are compared in constant time, and all of them.

        Raises:
            UnavailableError: the file can't be read; no key is known until it can.
        """
        self._look()
        if self._keys is None:
            raise UnavailableError("The keys can't be read now; the server's log says why. Try again later.")
        found, hash = None, _hash(given)
        for key in self._keys:
            if hmac.compare_digest(key.sha256, hash):
                found = key
        return found

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        mark = _mark(self._path)
        if self._keys is not None and mark == self._mark:
            return
        try:
            self._keys = read(self._path)
        except SetupError as error:
            if self._keys is not None:
                _log.error("keys", problem=error.message)
            self._keys = None
        self._mark = mark


def _hash(given: bytes) -> str:
    return hashlib.sha256(given).hexdigest()


def _mark(path: Path) -> object:
    """What differs when the file does."""
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_ctime_ns, found.st_size


def _change(path: Path, change: Callable[[list[Key]], list[Key]]) -> None:
    """Replaces the file in one step; changes of several programs come one after another."""
    path = path.resolve()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent) as folder:
            content = _File(keys=change(read(path))).model_dump_json(indent=2) + "\n"
            # A temporary file's mode is 0600.
            with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as file:
                try:
                    _give_to_owner(file.fileno(), path)
                    file.write(content.encode())
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).replace(path)
                except BaseException:
                    Path(file.name).unlink()
                    raise
            os.fsync(folder)
    except OSError as error:
        raise SetupError(f"The keys in {path} can't be written: {error.strerror}.") from error


def _give_to_owner(descriptor: int, path: Path) -> None:
    """Lets the server, whose files these are, read keys that root made."""
    if os.geteuid() == 0:
        owner = (path if path.exists() else path.parent).stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
