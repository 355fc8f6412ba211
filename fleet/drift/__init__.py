"""Drift: whether what models see and say today is what they were compiled for."""
