"""The parts of `benchmarks/engine.py`: model, prompts, systems, load generator, report."""
