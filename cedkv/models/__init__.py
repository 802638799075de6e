"""Causal LMs: loading, fingerprints, attention layers, the embedded model."""
