"""``python -m cedkv.report.dashboard dashboards/README.md`` writes the reference of keys between the page's two marks."""

from __future__ import annotations

import sys
from pathlib import Path

from cedkv.report.dashboard.reference import refreshed

if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(refreshed(page.read_text()))
