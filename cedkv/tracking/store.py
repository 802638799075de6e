"""Which tracking store a run uses, and making sure that it is there before anything expensive starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cedkv.core.errors import UserError
from cedkv.tracking import sqlite

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_DATABASE: Final = Path("mlruns", "mlflow.db")
"""The local store, relative to the project's folder; its artifacts lie in ``artifacts/`` beside it."""

_SQLITE: Final = "sqlite:///"
_DATABASE_SERVERS: Final = ("postgresql", "mysql", "mssql")
_HTTP: Final = ("http", "https")
_CONNECT_SECONDS: Final = 10.0


def resolve_uri(configured: str | None, env: Mapping[str, str], root: Path) -> str:
    """The store's URI: ``configured`` (``tracking.uri``), else ``MLFLOW_TRACKING_URI``, else SQLite under ``root``.

    A relative SQLite path is taken from ``root`` (the project's folder, see `project_root`), so that the store does
    not depend on where a command was started. Raises ``UserError`` for a URI that MLflow 3 cannot use.
    """
    uri = configured or env.get("MLFLOW_TRACKING_URI")
    if not uri:
        return _SQLITE + str(_checked_path(root.absolute() / DEFAULT_DATABASE, str(root)))
    check_uri(uri)
    if uri.startswith(_SQLITE):
        return _SQLITE + str(_checked_path(root.absolute() / uri.removeprefix(_SQLITE), uri))
    return uri


def local_home(uri: str) -> Path:
    """The folder on this machine for what a run keeps beside its store: that of a local database, or where one would be."""
    database = database_path(uri) if is_sqlite(uri) else project_root(Path.cwd()) / DEFAULT_DATABASE
    return database.parent


def project_root(start: Path) -> Path:
    """The nearest folder at or above ``start`` that holds ``.git``; ``start`` itself when there is none."""
    start = start.absolute()
    return next((folder for folder in (start, *start.parents) if (folder / ".git").exists()), start)


def check_uri(uri: str) -> None:
    """Raise ``UserError`` unless ``uri`` names a kind of store that runs can be logged to."""
    if shown(uri) != uri:
        raise UserError(
            f"tracking store {shown(uri)!r} holds a password, which would end up in logs and checkpoints: take it out and give it "
            "in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, PGPASSWORD or ~/.pgpass for PostgreSQL"
        )
    scheme = match[1] if (match := re.match(r"([A-Za-z][A-Za-z0-9]+)(\+[A-Za-z0-9]+)?:", uri)) else ""
    if scheme in {"", "file"}:
        folder = Path(uri.removeprefix("file:").replace("//", "/") or ".").absolute()
        raise UserError(
            f"tracking store {uri!r} is a folder of files, which MLflow 3 no longer writes; "
            f"use a database: {_SQLITE}{folder / 'mlflow.db'} (tracking.uri or MLFLOW_TRACKING_URI)"
        )
    if scheme == "sqlite" and (not uri.startswith(_SQLITE) or uri.removeprefix(_SQLITE) in {"", ":memory:"}):
        raise UserError(
            f"tracking store {uri!r} names no database file; a SQLite store is sqlite:///relative/path.db or "
            "sqlite:////absolute/path.db"
        )
    if scheme not in {"sqlite", *_DATABASE_SERVERS, *_HTTP}:
        raise UserError(
            f"tracking store {shown(uri)!r} has the unknown scheme {scheme!r}; use sqlite:///path.db, "
            "http(s)://host:port of an MLflow server, or a postgresql, mysql or mssql URI"
        )


def check_store(uri: str) -> None:
    """Raise ``UserError`` now where ``prepare_store`` would later: before a model is loaded. Creates nothing."""
    check_uri(uri)
    if uri.startswith(_SQLITE):
        sqlite.check(database_path(uri))
    elif uri.startswith(_HTTP):
        _check_server(uri)


def prepare_store(uri: str) -> None:
    """Make the store at ``uri`` ready for a run, however many processes do so at once.

    A SQLite database is created whole or not at all, in WAL mode, so that a dashboard can read while a run writes; a
    server has to answer. Raises ``UserError`` (value, rule, remedy), and then leaves no file or folder behind.
    """
    check_uri(uri)
    if uri.startswith(_SQLITE):
        sqlite.prepare(database_path(uri))
    elif uri.startswith(_HTTP):
        _check_server(uri)
    # A database server is reached, and its tables made, when the first client opens.


def open_client(uri: str) -> MlflowClient:
    """A client of the store at ``uri``, which has to exist: asking about a run never creates a store."""
    from cedkv.tracking.backend import MlflowClient, quiet, store_errors

    check_uri(uri)
    if uri.startswith(_SQLITE):
        sqlite.require(database_path(uri))
    elif uri.startswith(_HTTP):
        _check_server(uri)
    with store_errors(f"opening {shown(uri)}"), quiet():
        return MlflowClient(tracking_uri=uri)


def database_path(uri: str) -> Path:
    """The file of a SQLite URI."""
    return Path(uri.removeprefix(_SQLITE)).absolute()


def is_sqlite(uri: str) -> bool:
    """Whether ``uri`` is a database file of this machine."""
    return uri.startswith(_SQLITE)


def shown(uri: str) -> str:
    """``uri`` without its password, for messages and logs."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def _checked_path(path: Path, given: str) -> Path:
    if found := next((mark for mark in "%?" if mark in str(path)), None):
        raise UserError(
            f"tracking store {given!r}: the path {str(path)!r} holds {found!r}, which a database URI reads as an escape "
            "or an option; choose a path without it (tracking.uri or MLFLOW_TRACKING_URI)"
        )
    return path


def _check_server(uri: str) -> None:
    from cedkv.tracking.backend import MlflowException, server_status

    remedy = "start it (`mlflow server`), or correct tracking.uri or MLFLOW_TRACKING_URI"
    try:
        code, answer = server_status(uri, _CONNECT_SECONDS)
    except MlflowException as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"no MLflow server answers at {shown(uri)}: {reason}; {remedy}") from error
    if code >= 500:
        raise UserError(f"the MLflow server at {shown(uri)} answers {code} {answer}; {remedy}")
