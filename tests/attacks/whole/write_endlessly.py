"""Writes without end, to be told right before anybody has read it all, or to fill the judge's memory."""

while True:
    print("471203\n912047\n130991" * 10000)
