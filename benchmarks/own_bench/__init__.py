"""Parts of `sim_own.py`: servers on cores of their own, an open loop, foreseen against measured."""
