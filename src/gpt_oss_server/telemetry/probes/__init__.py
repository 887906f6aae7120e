"""Implementations of the `GpuProbe` port: NVML, this machine's processes, a recording.

Nothing is re-exported, so that importing one probe does not load what another needs.
"""
