"""The model registry: models, versions, aliases and where each came from."""
