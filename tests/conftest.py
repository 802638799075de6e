from __future__ import annotations

from hypothesis import settings

# A shared machine may take its time, and a failure seen by one developer must be seen by the next.
settings.register_profile("cedkv", deadline=None, derandomize=True)
settings.load_profile("cedkv")
