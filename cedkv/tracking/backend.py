"""The one place that imports mlflow: quietly, with its errors turned into the two kinds this project has."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cedkv.core.errors import UserError


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the warnings that mlflow's own imports and migrations cause in the libraries below it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# A request that fails is tried again from the journal, with every record in it; mlflow's own minutes of trying are in the way.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

with quiet():
    from mlflow import MlflowClient
    from mlflow.entities import (
        Dataset,
        DatasetInput,
        InputTag,
        LoggedModelOutput,
        Metric,
        Param,
        Run,
        RunTag,
        ViewType,
    )
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

# mlflow logs each database error with its traceback and raises it as well: the raised one is enough.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

__all__ = [
    "Dataset",
    "DatasetInput",
    "InputTag",
    "LoggedModelOutput",
    "Metric",
    "MlflowClient",
    "MlflowException",
    "Param",
    "Run",
    "RunTag",
    "SqlAlchemyStore",
    "TrackingError",
    "ViewType",
    "brief",
    "quiet",
    "server_status",
    "store_errors",
]


class TrackingError(RuntimeError):
    """The store failed while a run was using it. Nothing the user typed is wrong: a crash, not a usage error."""


def brief(error: BaseException) -> str:
    """Its message on one line, cut where it is long."""
    return " ".join(str(error).split())[:600] or type(error).__name__


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn what a store refuses into a ``UserError`` that says what was being done, e.g. ``"reading run 3f..."``."""
    try:
        yield
    except MlflowException as error:
        reason = brief(error)
        if "out-of-date database schema" in reason:
            reason = "its database was made by another version of MLflow; back it up, then run `mlflow db upgrade URI`"
        raise UserError(f"{doing}: the tracking store refused: {reason}") from error


def server_status(uri: str, timeout_s: float) -> tuple[int, str]:
    """HTTP status and reason of the health page of the MLflow server at ``uri``; ``MlflowException`` if none answers.

    mlflow's own request, so that certificates, proxies and credentials apply as they will later.
    """
    creds = get_default_host_creds(uri)
    answer = http_request(creds, "/health", "GET", max_retries=0, timeout=timeout_s, raise_on_status=False)
    return answer.status_code, answer.reason
