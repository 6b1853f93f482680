"""Conformance suites for docs/protocol.md: one for gateways, one for clients, in whatever language.

    python -m conformance server --url http://127.0.0.1:8080 --token-a … --token-b …
    python -m conformance client -- COMMAND …

They know the protocol only: nothing of this repository's code is imported, but by ``adapters``.
"""
