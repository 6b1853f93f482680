"""gRPC as every service speaks it: server, channels, and what surrounds a call. Knows no service's rules."""
