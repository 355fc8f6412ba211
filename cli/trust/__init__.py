"""What the people who sign do, on folders alone: no network, no fleet. `cli.release` is its commands."""
