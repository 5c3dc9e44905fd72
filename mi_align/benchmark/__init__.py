"""Timing that can be trusted: what `mi-align bench` and the scripts in `benchmarks/` share."""
