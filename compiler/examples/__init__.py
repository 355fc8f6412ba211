"""Files of examples that others made, read within limits."""
