"""What this device believes: trusted metadata, the time, answers to its own questions; and what it refused."""
