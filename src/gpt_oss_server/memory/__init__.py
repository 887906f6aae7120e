"""What a model and a request cost in memory, from the model's config alone.

PURE: no torch, no clock, no I/O. `architecture` reads a config, `blocks` counts blocks, `kv`
turns both into bytes and pools.
"""
