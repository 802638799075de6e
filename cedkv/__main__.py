"""``python -m cedkv``, also below ``accelerate launch -m cedkv``."""

from __future__ import annotations

from cedkv.cli import main

raise SystemExit(main())
