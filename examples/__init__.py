"""Agents that do real work, shipped with Carrel so that a new installation has something to run.

Not part of the library: nothing in ``carrel``, ``servicekit``, ``services`` or ``gateway`` imports from here.
"""
