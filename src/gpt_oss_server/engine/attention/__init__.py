"""Attention over paged KV: one interface, several backends, one contract suite.

- `reference`: one sequence at a time in float32; slow, obviously right; the yardstick.
- `triton`: kernels over block tables, planned on the device; CUDA with Triton.
- `tiled`: vectorised torch over a flat list of (query tile, KV partition) items; CPU and CUDA.
"""
