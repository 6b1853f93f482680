"""What the bridge decides: whether it can be relied on, who gets which entries and when. No grpc, no protobuf."""
