"""Answers of a model to the tasks of a benchmark; nothing here runs or judges them."""
