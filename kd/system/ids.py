"""Identifiers of runs, sweeps and datasets, and how one is found by the start of its own."""

import hashlib
import re
import secrets
import time
from pathlib import Path
from typing import TypeVar

from kd.errors import UserError

# How the name of a folder begins that is being deleted.
GONE = ".gone-"

# The time of creation to the microsecond, so that names sort by age, and four random digits.
ID = re.compile(r"\d{8}-\d{12}-[0-9a-f]{4}")

# What has an ``id`` as ``ID`` has it: a run, a sweep, a dataset.
Made = TypeVar("Made")


def new_id(created: float) -> str:
    """Return an id for what was made at ``created`` (Unix seconds)."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(created)) + f"{int(created * 1e6) % 1_000_000:06d}"
    return f"{stamp}-{secrets.token_hex(2)}"


def one_of(every: list[Made], id: str, kind: str, folder: Path | None, none: str) -> Made:
    """Return the one of ``every`` (newest first) with this ``id``, the start of it, or ``last``.

    ``folder`` is where they all are, for the message; ``None`` where they are those of one visitor, who is not to know.
    Raises ``UserError`` where there are several, or none, with ``none`` as a hint where there are none at all.
    """
    if id == "last" and every:
        return every[0]
    exact = [one for one in every if one.id == id]
    matches = exact or [one for one in every if id and one.id.startswith(id)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        named = ", ".join(one.id for one in matches[:5])
        raise UserError(f"{len(matches)} {kind}s start with {id!r}: {named}. Say more of it.")
    hint = f"The newest are {', '.join(one.id for one in every[:3])}." if every else none
    place = f"in {Path(folder).resolve()}" if folder else "among yours"
    raise UserError(f"There is no {kind} {id[:40]!r} {place}. {hint}")


def owner_hash(token: str) -> str:
    """Return what is kept of a token, from which the token cannot be computed."""
    return hashlib.sha256(token.encode()).hexdigest()
