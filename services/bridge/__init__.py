"""The bridge: each user's event log, the thread-run map, and the fan-out of new entries to gateways."""
