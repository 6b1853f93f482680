"""What makes a process a service: settings, life cycle, identity, gRPC, health, logs. Knows no service's rules."""
