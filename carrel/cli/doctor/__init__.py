"""``carrel doctor``: the six checks of ``validate_factory_integration`` against a deployment that runs.

``command`` is what the command line calls; ``checks_*`` are the checks; ``users`` are the two test users and what is
cleaned up after them; ``services`` are calls past the gateway. Not for load, and never in a person's name.
"""
