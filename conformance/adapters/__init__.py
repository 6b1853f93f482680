"""Clients of this repository behind the line protocol of ``conformance.client``; all that knows their code."""
