"""The broker, and everything that goes over it."""
