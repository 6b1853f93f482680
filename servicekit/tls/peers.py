"""gRPC's credentials from the files: a server's, which follow them with each handshake, and a client's for one service.

``Tls`` is what a process builds once and hands to its servers and channels. Without TLS it gives None everywhere.
"""

from __future__ import annotations

from typing import Final, Self

import grpc

from servicekit.settings import SharedSettings
from servicekit.tls.files import Material, TlsFiles
from servicekit.tls.settings import server_name

__all__ = ["PLAIN", "PeerTls", "Tls"]


class PeerTls:
    """What a channel needs to reach one service: credentials that follow the files, and the name to insist on.

    gRPC compares that name with the DNS names of the server's certificate, instead of the address that was dialled: so
    it is the same rule for names, numbers, lists and unix sockets.
    """

    def __init__(self, files: TlsFiles, name: str) -> None:
        self._files = files
        self.name = name

    def material(self) -> Material:
        """The files' present content."""
        return self._files.current()

    @staticmethod
    def credentials(material: Material) -> grpc.ChannelCredentials:
        """Credentials of one content."""
        return grpc.ssl_channel_credentials(material.roots, material.key, material.chain)


class Tls:
    """TLS of one process, or that there is none.

    Args:
        files: The process's files; None without TLS.
        trust_domain: In which peers have their names.
    """

    def __init__(self, files: TlsFiles | None, trust_domain: str) -> None:
        self._files = files
        self.trust_domain = trust_domain

    @classmethod
    def of(cls, settings: SharedSettings, service: str = "") -> Self:
        """From the settings; ``service`` is the one that the certificate must name.

        Raises:
            InvalidConfigurationError: The files cannot be read, or do not belong together.
        """
        tls = settings.tls
        return cls(TlsFiles(tls, service) if tls.enabled else None, tls.trust_domain)

    @property
    def enabled(self) -> bool:
        """Whether there is TLS."""
        return self._files is not None

    def to(self, service: str) -> PeerTls | None:
        """For channels to this service; None without TLS."""
        return None if self._files is None else PeerTls(self._files, server_name(service, self.trust_domain))

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """For a server that every caller must show a certificate to; None without TLS."""
        if self._files is None:
            return None
        files = self._files
        given = files.current().generation

        def latest() -> grpc.ServerCertificateConfiguration:
            nonlocal given
            material = files.current()
            if material.generation == given:
                return None  # type: ignore[return-value]  # the stubs do not know: the former stays
            given = material.generation
            return _configuration(material)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(files.current()), latest, require_client_authentication=True
        )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.chain)], material.roots)


PLAIN: Final = Tls(None, "")
