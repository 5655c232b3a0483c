"""Finds the program in a model's answer, in a process that the answer cannot hold up."""
