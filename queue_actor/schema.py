"""The tables of the store's file, their version, and how a file comes to have them.

README.md in this folder says which of them others may rely on.
"""

from collections.abc import Sequence
from typing import Any, Final, Protocol

APPLICATION_ID: Final = 0x51414354  # "QACT", in the file's header: what file(1) and a wrong file are known by
SCHEMA_VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE queues (
    name TEXT PRIMARY KEY, next_id INTEGER NOT NULL, next_fence INTEGER NOT NULL, paused INTEGER NOT NULL,
    declared INTEGER NOT NULL, policy TEXT NOT NULL, departures INTEGER NOT NULL, revision INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE jobs (
    queue TEXT NOT NULL, id INTEGER NOT NULL, state TEXT NOT NULL, type TEXT NOT NULL, priority INTEGER NOT NULL,
    created_at REAL NOT NULL, kept_until REAL, consumer TEXT, facts TEXT NOT NULL, payload TEXT,
    PRIMARY KEY (queue, id)
);
CREATE INDEX jobs_finished ON jobs (state, kept_until) WHERE kept_until IS NOT NULL;
CREATE TABLE large_payloads (
    queue TEXT NOT NULL, id INTEGER NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (queue, id)
);
CREATE TABLE answers (
    kind TEXT NOT NULL, scope TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, at REAL NOT NULL,
    answer TEXT NOT NULL, PRIMARY KEY (kind, scope, key)
) WITHOUT ROWID;
"""


class ForeignFileError(Exception):
    """The file is not one that this program can use; it is left as it is."""


class Connection(Protocol):
    """What is used of a connection to SQLite, so that another SQLite may stand in for the standard library's."""

    def execute(self, statement: str, parameters: Sequence[Any] = ..., /) -> Any:
        """Carry out one statement."""
        ...

    def close(self) -> None:
        """End, and roll back what was not committed."""
        ...


def prepare(connection: Connection, fresh_secret: bytes, fresh_instance: str) -> None:
    """Make the tables of a new file, with this token secret and this name; see that those of another are ours.

    Raises:
        ForeignFileError: Another program has written it, or a newer version of this one.
    """
    execute = connection.execute
    application, version = (execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise ForeignFileError("it is another program's")
    if version > SCHEMA_VERSION:
        raise ForeignFileError(f"its schema has version {version}, and this program knows {SCHEMA_VERSION}")
    if not tables:
        execute("BEGIN IMMEDIATE")
        for statement in SCHEMA.split(";\n"):
            if statement.strip():
                execute(statement)
        execute("INSERT INTO meta VALUES ('secret', ?), ('instance', ?)", (fresh_secret, fresh_instance))
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        execute("COMMIT")
