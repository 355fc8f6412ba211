"""Where variants are made, run and timed: child processes, and a cache of what they made."""
