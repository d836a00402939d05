"""Labelers, the links by which they log in once, and their sessions.

Links and sessions are random secrets. The store keeps their SHA-256 only, so that whoever reads the file cannot log in.
"""

import hashlib
import secrets
import sqlite3
from dataclasses import dataclass

from rlhf.errors import InputError
from rlhf.labeling.items import check_text
from rlhf.labeling.store import Store, time_or_now

ROLES = ("labeler", "admin")
LINK_SECONDS = 7 * 24 * 3600.0
SESSION_SECONDS = 30 * 24 * 3600.0
MAX_NAME = 100


@dataclass(frozen=True)
class Labeler:
    """Attributes:
    screening: "none" (was not screened), "pending", "passed" or "failed".
    done: number of tasks that she has judged or skipped.
    """

    id: int
    name: str
    role: str
    screening: str
    revoked: bool
    done: int


@dataclass(frozen=True)
class Session:
    """A labeler who is logged in, and the key that her forms carry against requests from other sites."""

    labeler: Labeler
    csrf: str


def add_labeler(
    store: Store,
    name: str,
    role: str = "labeler",
    screened: bool = False,
    held_out: bool = False,
    *,
    now: float | None = None,
) -> str:
    """Adds a labeler and returns the token of her link, which logs in once within seven days.

    Args:
        screened: she judges gold items first (`rlhf.labeling.screening`).
        held_out: her labels are validation data, and never train (section 3.4 of the paper).

    Raises:
        InputError: the name is taken, blank or longer than 100 characters.
    """
    check_text(name, "The name of a labeler", MAX_NAME)
    if name != name.strip() or not name.isprintable():
        raise InputError(f"The name {name!r} begins or ends with space, or holds control characters. Leave them out.")
    if role not in ROLES:
        raise InputError(f"The role of {name} is {role!r}. Choose labeler or admin.")
    with store.write() as db:
        if db.execute("select 1 from labelers where name = ?", (name,)).fetchone():
            raise InputError(f"There is a labeler {name}. Give another name, or make a new link for {name}.")
        db.execute(
            "insert into labelers (name, role, screening, held_out, created) values (?, ?, ?, ?, ?)",
            (name, role, "pending" if screened else "none", held_out, time_or_now(now)),
        )
        return new_link(store, name, now=now)


def new_link(store: Store, name: str, *, now: float | None = None) -> str:
    """Returns the token of a new link; the one before no longer works. A revoked labeler may log in again with it."""
    token = secrets.token_urlsafe(32)
    with store.write() as db:
        db.execute(
            "update labelers set link_hash = ?, link_expires = ?, revoked = 0 where id = ?",
            (_hash(token), time_or_now(now) + LINK_SECONDS, _named(db, name)),
        )
    return token


def revoke(store: Store, name: str) -> None:
    """Ends a labeler's sessions, link and leases. Her judgments stay."""
    with store.write() as db:
        labeler = _named(db, name)
        db.execute("update labelers set revoked = 1, link_hash = null, link_expires = null where id = ?", (labeler,))
        db.execute("delete from sessions where labeler = ?", (labeler,))
        db.execute("update tasks set expires = 0 where labeler = ? and revision = 0", (labeler,))


def log_in(store: Store, token: str, *, now: float | None = None) -> str | None:
    """Uses a link up and returns the secret of a session of 30 days; None for a link that is unknown, used or old."""
    now, secret = time_or_now(now), secrets.token_urlsafe(32)
    with store.write() as db:
        row = db.execute(
            "select id from labelers where link_hash = ? and link_expires > ? and not revoked", (_hash(token), now)
        ).fetchone()
        if row is None:
            return None
        db.execute("update labelers set link_hash = null, link_expires = null where id = ?", (row["id"],))
        db.execute("delete from sessions where expires <= ?", (now,))
        db.execute(
            "insert into sessions values (?, ?, ?, ?)",
            (_hash(secret), row["id"], secrets.token_urlsafe(16), now + SESSION_SECONDS),
        )
    return secret


def session(store: Store, secret: str, *, now: float | None = None) -> Session | None:
    """Returns the session of a secret; None if there is none, if it has expired, or if its labeler was revoked."""
    with store.read() as db:
        row = db.execute(
            "select l.*, s.csrf from sessions s join labelers l on l.id = s.labeler "
            "where s.secret_hash = ? and s.expires > ? and not l.revoked",
            (_hash(secret), time_or_now(now)),
        ).fetchone()
    return None if row is None else Session(_labeler(row), row["csrf"])


def log_out(store: Store, secret: str) -> None:
    """Ends a session."""
    with store.write() as db:
        db.execute("delete from sessions where secret_hash = ?", (_hash(secret),))


def labelers(store: Store) -> list[Labeler]:
    """Returns all labelers, in the order in which they were added."""
    with store.read() as db:
        return [_labeler(row) for row in db.execute("select * from labelers order by id")]


def find_labeler(store: Store, name: str) -> Labeler:
    """Returns the labeler of a name.

    Raises:
        InputError: there is none.
    """
    with store.read() as db:
        return _labeler(db.execute("select * from labelers where id = ?", (_named(db, name),)).fetchone())


def _named(db: sqlite3.Connection, name: str) -> int:
    row = db.execute("select id from labelers where name = ?", (name,)).fetchone()
    if row is None:
        names = ", ".join(row["name"] for row in db.execute("select name from labelers order by id limit 20"))
        raise InputError(f"There is no labeler {name!r:.120}. Choose from {names or 'none: add one first'}.")
    return row["id"]


def _labeler(row: sqlite3.Row) -> Labeler:
    return Labeler(row["id"], row["name"], row["role"], row["screening"], bool(row["revoked"]), row["done"])


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
