"""The search: candidates are compared, one is chosen, proven, or mended layer by layer."""
