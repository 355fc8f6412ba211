"""Builds on the fleet's machine: what is uploaded for them, their queue, and the compiler as a process."""
