"""Verdicts: pure functions from logged runs (``RunRecord``) to results. No torch, no mlflow, no I/O."""
