"""The emitter: checks and cleans events, keeps users from delaying one another, hands events to the bridge's log."""
