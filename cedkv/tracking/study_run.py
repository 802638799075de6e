"""The run of a study of settings: the parent of its trials' runs. Several workers write to it, and none owns it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any, Final

from cedkv import ledger
from cedkv.core.errors import UserError
from cedkv.tracking.attach import attach
from cedkv.tracking.names import MAX_TAG, check_experiment, check_key, clip, flatten
from cedkv.tracking.store import open_client, prepare_store, shown
from cedkv.tracking.writer import experiment_id_of, origin

TRIES: Final = 4
"""Of two workers that write the same metric or file of their study at once, a database or a server may refuse one."""


def open_study_run(
    uri: str,
    experiment: str,
    name: str,
    *,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
    files: Mapping[str, str],
) -> str:
    """Begin the run of a study; its id. It stays RUNNING until `mark_study_run`, whichever worker dies meanwhile."""
    from cedkv.tracking.backend import Param, store_errors

    check_experiment(experiment)
    prepare_store(uri)
    client = open_client(uri)
    with store_errors(f"starting the run of study {name} in {shown(uri)}"):
        checked = {check_key(key, "tag"): clip(value, MAX_TAG) for key, value in tags.items()}
        found = client.create_run(
            experiment_id_of(client, experiment, uri), tags=origin() | checked, run_name=name
        )
        run_id: str = found.info.run_id
        client.log_batch(run_id, params=[Param(key, value) for key, value in flatten(params)])
    attach(run_id, uri, files)
    return run_id


def note_study(
    run_id: str, uri: str, *, metrics: Mapping[str, float], step: int, files: Mapping[str, str]
) -> None:
    """Bring the run of a study up to date: `metrics` (finite ones) at `step`, and its `files` as they are now.

    Raises:
        TrackingError: the store refuses again and again.
    """
    from cedkv.tracking.backend import Metric, TrackingError, store_errors

    now = time.time_ns() // 1_000_000
    points = [Metric(check_key(name), value, now, step) for name, value in metrics.items()]
    for left in reversed(range(TRIES)):
        try:
            with store_errors(f"writing to the run of the study {run_id} in {shown(uri)}"):
                open_client(uri).log_batch(run_id, metrics=points)
            attach(run_id, uri, files)
        except (UserError, OSError) as error:  # a server that refuses a file is an OSError of `requests`
            if not left:
                raise TrackingError(str(error)) from error
            time.sleep(random.uniform(0.2, 1.0))
        else:
            return


def mark_study_run(run_id: str, uri: str, status: str) -> None:
    """Give the run of a study its status: RUNNING while a worker is at it, FINISHED when its budget is spent."""
    from cedkv.tracking.backend import store_errors

    client = open_client(uri)
    with store_errors(f"marking the run of the study {run_id} in {shown(uri)}"):
        if status == "RUNNING":
            client.update_run(run_id, status)
        else:
            client.set_terminated(run_id, status)


def trial_tags(parent: str, study: str, scale: int, trial: str) -> dict[str, str]:
    """What ties a trial's run to its study."""
    return {
        ledger.TAG_PARENT: parent,
        ledger.TAG_STUDY: study,
        ledger.TAG_SCALE: str(scale),
        ledger.TAG_TRIAL: trial,
    }
