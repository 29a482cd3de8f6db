"""API keys: who is known, what each may do and how often.

A key is 256 random bits, so that its SHA-256 can't be turned back: the file of keys holds digests only. The file is
read again when it changes, and a key that is no longer in it stops working.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_store.disk import read_record
from model_store.errors import SuccessorError, first_problem
from service.background import repeat
from service.errors import AuthenticationError, NotPermittedError, RateLimitedError
from service.rate_limit import TokenBucket

log = structlog.get_logger(__name__)

Permission = Literal["infer", "admin", "metrics"]

KEY_PREFIX = "suc_"
POLL_S = 1.0
_KEY_BYTES = 32
# Of a digest's bytes, those that find it; all of them are then compared.
_FINDING = 8
_UNKNOWN = bytes(32)

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class KeysFileError(SuccessorError):
    """The file of API keys can't be read, or is not valid."""


class KeyEntry(BaseModel):
    """One key, as the file has it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="of whoever holds the key, for the logs"
    )
    sha256: Digest = Field(description="of the key")
    scopes: tuple[Permission, ...] = Field(min_length=1, description="what it may do")
    requests_per_second: float | None = Field(None, ge=0.001, le=1e6, description="None: as many as it likes")


class KeysFile(BaseModel):
    """The file of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anonymous: tuple[Literal["infer", "metrics"], ...] = Field((), description="what callers without a key may do")
    keys: tuple[KeyEntry, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [entry.name for entry in self.keys]
        digests = [entry.sha256[: 2 * _FINDING] for entry in self.keys]
        if len(set(names)) < len(names) or len(set(digests)) < len(digests):
            raise ValueError("every name and every key may be there once")
        return self


def new_key() -> str:
    """A key that nobody can guess."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def digest_of(key: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_keys(data: bytes, path: Path) -> KeysFile:
    """The keys in a file's bytes.

    Raises:
        KeysFileError: not what `KeysFile` says; the message quotes nothing of the file.
    """
    try:
        return KeysFile.model_validate_json(data)
    except ValidationError as error:
        where, what = first_problem(error)
        raise KeysFileError(f"the API keys in {path} are not valid: {where + ': ' if where else ''}{what}") from None


def read_keys(path: Path) -> bytes:
    """The bytes of a file of keys.

    Raises:
        KeysFileError: it can't be read.
    """
    try:
        return read_record(path, follow_links=True)  # Kubernetes mounts what is in a Secret as links
    except FileNotFoundError as error:
        raise KeysFileError(f"there are no API keys in {path}: make one with `successor keys new`") from error
    except OSError as error:
        raise KeysFileError(
            f"the API keys in {path} can't be read ({error.strerror}): check who may, they are digests"
        ) from error


@dataclass(frozen=True, slots=True)
class _Holder:
    entry: KeyEntry
    digest: bytes
    bucket: TokenBucket | None


class Keyring:
    """The keys that a server accepts; used on the event loop.

    Args:
        path: the file of keys.
        shared_dir: a folder that all processes of one server share, where it has several.
        clock: seconds, the same for all of them.

    Raises:
        KeysFileError: the file can't be read or is not valid.
    """

    def __init__(self, path: Path, shared_dir: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._shared_dir = shared_dir
        self._clock = clock
        self._data = read_keys(path)
        self._failure = ""
        self._holders: dict[bytes, _Holder] = {}
        self._anonymous: frozenset[str] = frozenset()
        self._take(parse_keys(self._data, path))

    def admit(self, headers: Mapping[bytes, bytes], permission: Permission) -> str:
        """The name of the key that a request carries, if it may do what it asks for; empty without a key.

        Raises:
            AuthenticationError: no key, or none that is known.
            NotPermittedError: the key lacks the scope.
            RateLimitedError: the key has asked more often than it may.
        """
        keys = keys_of(headers)
        if not keys:
            if self.lets_anybody(permission):
                return ""
            raise AuthenticationError("send an API key: header 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
        holder = next((found for key in keys if (found := self._holder_of(key)) is not None), None)
        if holder is None:
            raise AuthenticationError("the API key is not known here: it is wrong or was revoked")
        entry = holder.entry
        if permission not in entry.scopes:
            raise NotPermittedError(f"the API key {entry.name!r} may not do this: it needs the scope {permission!r}")
        if holder.bucket is not None:
            wait_s = holder.bucket.take(self._clock())
            if wait_s:
                raise RateLimitedError(
                    f"the API key {entry.name!r} may send {entry.requests_per_second:g} requests a second: wait",
                    retry_after_s=wait_s,
                )
        return entry.name

    def lets_anybody(self, permission: Permission) -> bool:
        """Whether callers without a key may do it."""
        return permission in self._anonymous

    def _holder_of(self, key: bytes) -> _Holder | None:
        digest = hashlib.sha256(key).digest()
        holder = self._holders.get(digest[:_FINDING])
        known = hmac.compare_digest(digest, _UNKNOWN if holder is None else holder.digest)
        return holder if known else None

    def refresh(self) -> None:
        """Take over what the file says now; one that is gone or not valid changes nothing, and is logged once."""
        try:
            data = read_keys(self._path)
            if data != self._data:
                self._take(parse_keys(data, self._path))
                self._data = data
                log.info("API keys read again", keys=len(self._holders))
            self._failure = ""
        except KeysFileError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning("API keys not read again: those from before stay", error=self._failure)

    async def follow(self) -> None:
        """Refresh now and then, until cancelled."""
        await repeat("read the API keys again", self.refresh, POLL_S)

    def close(self) -> None:
        """Let go of the buckets' files."""
        for holder in self._holders.values():
            if holder.bucket is not None:
                holder.bucket.close()

    def _take(self, file: KeysFile) -> None:
        """Replace the keys; a bucket whose key and rate stay is kept, so that a change of the file fills none."""
        before, holders = self._holders, dict[bytes, _Holder]()
        with contextlib.ExitStack() as made:  # closed again where there is no room for all
            for entry in file.keys:
                digest = bytes.fromhex(entry.sha256)
                held = before.get(digest[:_FINDING])
                rate = entry.requests_per_second
                bucket = None if held is None or held.bucket is None or held.bucket.rate != rate else held.bucket
                if bucket is None and rate is not None:
                    bucket = TokenBucket(rate, self._shared_file(entry.sha256, rate))
                    made.callback(bucket.close)
                holders[digest[:_FINDING]] = _Holder(entry, digest, bucket)
            made.pop_all()
        self._holders, self._anonymous = holders, frozenset(file.anonymous)
        kept = {id(holder.bucket) for holder in holders.values()}
        for holder in before.values():
            if holder.bucket is not None and id(holder.bucket) not in kept:
                holder.bucket.close()

    def _shared_file(self, sha256: str, rate: float) -> Path | None:
        return None if self._shared_dir is None else self._shared_dir / f"rate-{sha256[:32]}-{rate:g}"


def keys_of(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """What may be a request's key: either of two headers may be there for somebody else, such as a gateway."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    bearer = credentials.strip() if scheme.lower() == b"bearer" else b""
    return [key for key in (bearer, headers.get(b"x-api-key", b"")) if key]
