"""Who this device is: its keys, its certificate and the renewed one beside it, and TLS by them."""
