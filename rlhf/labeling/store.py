"""The label store: one SQLite file in WAL mode, written by one transaction after another.

What `Store.write` has returned survives a kill and a power cut. Each commit appends to the write-ahead log, and is
acknowledged after an fsync of that log. Transactions that end while an fsync runs share the next one, so that 50
labelers who submit at once wait for two of them, not for 50.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.errors import InputError, first_line

VERSION = 1  # of schema.sql
APPLICATION = 0x524C4846  # "RLHF" in the file's header: it is a label store
BUSY_SECONDS = 30  # wait for another process that writes, which may add a large batch
# Pages of the log after which it is copied into the file. A judgment writes ten; a copy costs two fsyncs.
CHECKPOINT_PAGES = 4000
SCHEMA = Path(__file__).parent / "schema.sql"


class Store:
    """A label store, opened or created. Threads share it.

    Args:
        path: of the file. Missing folders are created.

    Raises:
        InputError: the file is no label store, is one of another version, or cannot be opened.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().resolve()
        self._lock, self._read_lock = threading.RLock(), threading.RLock()
        self._writer: int | None = None  # thread that is in a transaction
        self._depth = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _open(self.path)
            self._reader = _connect(self.path)
            self._reader.execute("pragma query_only = on")
            self._log = _Log(self.path)
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"{self.path} cannot be opened as a label store: {first_line(error)}. Give the path of a label store, "
                "or of a file that does not exist, in a folder that you can write to."
            ) from error

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Opens a transaction, which an exception undoes. Inside another one of this thread, it is a part of it.

        Returns after the changes are on the disk.
        """
        with self._lock:
            if self._depth:
                with self._part():
                    yield self._db
                return
            self._db.execute("begin immediate")
            self._depth, self._writer, before = 1, threading.get_ident(), self._db.total_changes
            try:
                yield self._db
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise
            finally:
                self._depth, self._writer = 0, None
            number = self._log.committed() if self._db.total_changes != before else None
        if number is not None:  # outside the lock: the next transaction runs while this one waits for the disk
            self._log.wait(number)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Gives a connection that reads the last commit, or in a transaction of this thread, what it has written.

        For short queries: other readers wait.
        """
        if self._writer == threading.get_ident():
            yield self._db
            return
        with self._read_lock:
            self._reader.execute("begin")
            try:
                yield self._reader
            finally:
                self._reader.execute("commit")

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Gives a connection of its own that reads the last commit, for long queries: nobody waits for it."""
        db = _connect(self.path)
        try:
            db.execute("pragma query_only = on")
            db.execute("begin")
            yield db
        finally:
            db.close()

    def setting(self, name: str, default: Any = None) -> Any:
        """Returns the value of a setting, or `default`."""
        with self.read() as db:
            row = db.execute("select value from settings where name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row["value"])

    def set_setting(self, name: str, value: Any) -> None:
        """Keeps a JSON value under a name."""
        with self.write() as db:
            db.execute("insert or replace into settings values (?, ?)", (name, json.dumps(value, ensure_ascii=False)))

    def close(self) -> None:
        """Closes the file. The log is copied into it, so that the file can be moved alone."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._db.close()
            self._log.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _part(self) -> Iterator[None]:
        self._db.execute("savepoint part")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._db.execute("rollback to part")
            raise
        finally:
            self._depth -= 1
            self._db.execute("release part")


def time_or_now(now: float | None) -> float:
    """Returns a time that is given, else the clock's, in Unix seconds."""
    return time.time() if now is None else now


class _Log:
    """The write-ahead log, brought to the disk once for all commits before."""

    def __init__(self, path: Path):
        self.file = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT, 0o600)
        self.sync = getattr(os, "fdatasync", os.fsync)
        self.changed = threading.Condition()
        self.commits = self.on_disk = 0
        self.is_syncing = False
        self.fault: OSError | None = None

    def committed(self) -> int:
        """Returns the number of a commit."""
        with self.changed:
            self.commits += 1
            return self.commits

    def wait(self, number: int) -> None:
        """Returns when the commit of that number is on the disk. One of the waiting threads runs the fsync.

        Raises:
            OSError: the disk failed, now or earlier. After a failure the system may drop what it could not write, so
                that a later fsync would succeed wrongly.
        """
        while True:
            with self.changed:
                while self.is_syncing and self.on_disk < number:
                    self.changed.wait()
                if self.fault is not None:
                    raise self.fault
                if self.on_disk >= number:
                    return
                self.is_syncing, last = True, self.commits
            try:
                self.sync(self.file)
                fault = None
            except OSError as error:
                fault = error
            with self.changed:
                self.is_syncing, self.fault = False, fault
                self.on_disk = last if fault is None else self.on_disk
                self.changed.notify_all()

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    db.execute("pragma foreign_keys = on")
    return db


def _open(path: Path) -> sqlite3.Connection:
    """Returns a connection that writes; an empty file gets the tables."""
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # it holds names and hashes: for its owner alone
    db = _connect(path)
    try:
        _check(db, path)
        if db.execute("pragma journal_mode = wal").fetchone()[0] != "wal":
            raise InputError(f"{path} is on a file system without shared memory. Keep the label store on a local disk.")
        if db.execute("pragma user_version").fetchone()[0] == 0:
            head = f"pragma application_id = {APPLICATION}; pragma user_version = {VERSION};"
            db.executescript(f"begin immediate; {SCHEMA.read_text(encoding='utf-8')} {head} commit;")
            db.execute("pragma wal_checkpoint(truncate)")
        db.execute("pragma synchronous = normal")  # fsync before a checkpoint; that of a commit is _Log's
        db.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    """Raises `InputError` if the file has tables of something else, or of another version."""
    tables = db.execute("select count(*) from sqlite_master").fetchone()[0]
    application, version = (db.execute(f"pragma {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if (tables or application or version) and application != APPLICATION:
        raise InputError(f"{path} is an SQLite file, but no label store. Give another path.")
    if application == APPLICATION and version != VERSION:
        raise InputError(
            f"{path} is a label store of version {version}; this version of the library reads {VERSION}. "
            "Use the version that has made it, or start a new file."
        )
