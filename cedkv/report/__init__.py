"""Reports from logged runs: text in four formats, a page per run, and figures. No torch; plotly only in ``figures``."""
