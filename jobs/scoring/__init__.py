"""Samples to verdicts (judge.py), and results to metrics (metrics.py); nothing here loads a model."""
