"""Data only: one TOML file per hardware class, read with `importlib.resources`."""
