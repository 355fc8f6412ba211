"""Source models: what a team brings, checked and described."""
