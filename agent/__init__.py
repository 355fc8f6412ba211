"""The device agent: small, distrustful, and still there after a power cut."""
