"""The width of each step, chosen from what steps cost and bring."""
