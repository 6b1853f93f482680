"""TLS between the services: both sides show a certificate, which names a service. ``Tls`` is what services use.

Not the gateway's listener for clients, which an ingress encrypts.
"""
