"""`shoal demo`: the whole of Shoal on one machine, on real input."""
