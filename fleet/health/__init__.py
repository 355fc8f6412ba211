"""Health: how fresh the fleet's knowledge of its devices is, and who is told when something is wrong."""
