"""Triton kernels and the thin functions that launch them.

Nothing here is imported unless a backend asks for it: Triton is an extra. `usable` says whether
it can be used; it alone may be imported without Triton. Under `TRITON_INTERPRET=1` every kernel
runs on a CPU, which is how the tests prove them without a GPU.
"""
