"""How the machine and the process fare, and the telemetry that tells of it."""
