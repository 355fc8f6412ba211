"""What the fleet keeps: database, blobs, and the data folder itself."""
