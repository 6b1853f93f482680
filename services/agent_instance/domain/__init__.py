"""The host's side of an attempt: registry, pool, contexts, tools, events, time. Knows neither grpc nor protobuf."""
