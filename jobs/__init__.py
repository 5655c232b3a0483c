"""Post-training of code models with verifiable rewards, one batch job a file."""

__version__ = "0.1.0"
