"""Foresee: replay a workload on GPUs that are not there. Pure: no torch, web, asyncio, clock.

`workload` (who asks what, when) → `fleet` (a dispatcher with a routing policy, failures) →
`replica` (one engine, stepped in closed form over `cost`) → `results` (goodput, knees, intervals,
reports; `html` draws them). `calibrate` fits `cost` to what was measured; `plan` searches layouts
and policies.
"""
