"""What ships: the parts of a bundle, packed into an OCI image layout and read from it."""
