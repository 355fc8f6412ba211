"""How a device joins a fleet, keeps its certificate new, and leaves."""
