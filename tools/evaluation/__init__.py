"""Evaluation that cannot lie: denominators stated, faults counted, nothing lost when it stops."""
