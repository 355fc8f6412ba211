"""The line to the fleet: what is said on it, what is commanded over it, and how good it is."""
