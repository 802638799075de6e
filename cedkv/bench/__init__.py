"""Measurements of cedkv beside its peers: paired, interleaved, each checked against an independent computation."""
