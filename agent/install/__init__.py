"""From a desired state to a bundle on disk, and into service."""
