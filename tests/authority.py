"""Certificates for the servers of tests."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority of our own, as a company makes one.

    Its certificates leave out what Python's own settings want from 3.13 on (RFC 5280's key
    identifiers, a certificate that says it is no authority): other programs take them, so do we.
    """

    def __init__(self, folder):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test Authority")])
        self.folder = folder
        self.asked = []
        self.ca_file = folder / "ca.pem"
        constraint = x509.BasicConstraints(ca=True, path_length=0)
        certificate = self._build(self.name, self.key, constraint, critical=True)
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _build(self, name, key, extension, *, critical):
        now = dt.datetime.now(dt.UTC)
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(extension, critical=critical)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def server(self, *names):
        """A server context for these names, which lets ``asked`` note the SNI."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        alternatives = x509.SubjectAlternativeName(
            [
                x509.IPAddress(ipaddress.ip_address(name))
                if name[0].isdigit()
                else x509.DNSName(name)
                for name in names
            ]
        )
        certificate = self._build(subject, key, alternatives, critical=False)
        path = self.folder / "server.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.sni_callback = lambda _, name, __: self.asked.append(name)
        return context
