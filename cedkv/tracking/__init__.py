"""The log: written while a run lives, read back when it is judged. The only room that imports mlflow.

``record`` is the exception: plain dataclasses without mlflow, which the gates and the reports consume. Importing this
package stays cheap, and so does reading a local store (``reader``, ``fast_read``); ``writer``, and ``api_read`` for every
other store, pull mlflow in (about two seconds).
"""

from __future__ import annotations

import os

# Nothing leaves the machine and nothing but this project writes to the terminal. Set before any import of mlflow,
# which reads them once; what the user has set himself stands.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)
