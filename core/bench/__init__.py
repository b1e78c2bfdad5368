"""Measuring: what `tttunet bench` and the scripts in `benchmarks` share. Read `paired.py` first."""
