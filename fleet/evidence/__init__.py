"""Evidence: what telemetry says of models on devices, kept in windows that merge."""
