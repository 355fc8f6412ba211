"""Source model in, bundle out; a process of its own."""
