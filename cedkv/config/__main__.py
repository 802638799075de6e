"""``python -m cedkv.config PAGE`` writes the reference of all keys into a Markdown page, between its marks."""

from __future__ import annotations

import sys
from pathlib import Path

from cedkv.config.reference import refreshed

page = Path(sys.argv[1])
page.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")
