"""From a bundle on disk to an answer on the local API."""
