"""Foresee: replay a workload on GPUs that are not there. Pure: no torch, web, asyncio, clock.

`workload` (who asks what, when) → `cluster` (pools, failures, a routing policy) → `engine` (one
replica, stepped in closed form over `cost`) → `slo` (goodput, the knee).
"""
