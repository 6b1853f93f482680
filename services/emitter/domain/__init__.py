"""The emitter's rules: what an event may be, what is cleaned out of it, whose turn it is, what was acknowledged."""
