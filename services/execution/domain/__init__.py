"""Execution's rules: admission, planning, the life of a run. Knows neither grpc nor protobuf nor SQL."""
