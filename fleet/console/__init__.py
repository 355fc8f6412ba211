"""The console: three static files that read the API from a browser."""
