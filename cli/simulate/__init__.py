"""`shoal simulate`: many devices on one machine, before there are many."""
