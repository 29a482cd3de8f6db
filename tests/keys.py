"""API keys that tests know, and the file that holds their digests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from service.access import Permission, digest_of

KEY = "suc_a-key-that-may-do-everything"
BEARER = {"authorization": f"Bearer {KEY}"}
EVERYTHING: tuple[Permission, ...] = ("infer", "admin", "metrics")


def entry(
    key: str, *scopes: Permission, name: str | None = None, requests_per_second: float | None = None
) -> dict[str, object]:
    """One key's entry; by default it is called like its scopes."""
    return {
        "name": name or "-".join(scopes),
        "sha256": digest_of(key),
        "scopes": scopes,
        "requests_per_second": requests_per_second,
    }


def write_keys(path: Path, *entries: dict[str, object], anonymous: Sequence[Permission] = ()) -> Path:
    """Write the file at once, with `KEY` for everything unless entries are given."""
    aside = path.with_suffix(".incoming")
    aside.write_text(json.dumps({"anonymous": anonymous, "keys": entries or [entry(KEY, *EVERYTHING)]}))
    return aside.replace(path)
