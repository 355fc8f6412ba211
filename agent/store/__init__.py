"""What a device keeps on its disk: the database with its spare, the telemetry that waits, and the blobs."""
