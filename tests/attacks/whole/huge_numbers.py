"""Writes numbers that a comparison by value would take for ever to read, or that equal anything."""

print("9" * 900000, "1e999999999", "nan", "inf", "1_000", "sNaN", "-0", "٣")
