"""The central service: decides who runs what."""
