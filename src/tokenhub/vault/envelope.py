"""The forms of what is sealed: header, one sealed text per secret. No state, no database.

    password ──Argon2id(salt, params)──► root ─┬─HKDF "wrap"──► KEK ──AES-256-GCM──► wrapped DEK
                                               └─HKDF "check"─► verifier (kept in the header)
    DEK ──AES-256-GCM, fresh nonce, associated data──► sealed secret

The verifier tells a wrong password from a damaged header and commits to the key, which GCM alone
does not. Associated data binds a ciphertext to everything that gives it meaning, so that it is
worth nothing in another place. Argon2id: RFC 9106; HKDF: RFC 5869; GCM: NIST SP 800-38D.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode

import msgspec

from tokenhub.core.errors import Unavailable

FORMAT = 1
KEY_BYTES = 32
NONCE_BYTES = 12
SALT_BYTES = 16
TAG_BYTES = 16


class VaultTampered(Unavailable):
    """What is stored is not what the vault wrote."""

    default_code = "vault_tampered"


class WrongPassword(Exception):
    """The password does not fit the header."""


class KdfParams(msgspec.Struct, frozen=True):
    """The cost of one guess: memory in KiB, passes, lanes. The defaults take about 0.1 s."""

    memory_kib: int = 64 * 1024
    iterations: int = 3
    lanes: int = 4

    def reaches(self, floor: KdfParams) -> bool:
        """Whether no part is weaker than ``floor``."""
        return (
            self.memory_kib >= floor.memory_kib
            and self.iterations >= floor.iterations
            and self.lanes >= floor.lanes
        )


FLOOR = KdfParams()
CEILING = KdfParams(memory_kib=4 * 1024 * 1024, iterations=64, lanes=64)


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is stored of the vault as a whole; binary fields are base64 text.

    ``version`` counts rotations. ``digest`` is a checksum over the other fields: it tells damage
    from a wrong password; against an attacker stand the verifier and the wrap's own tag.
    """

    format: int
    vault_id: str
    version: int
    kdf: KdfParams
    salt: str
    verifier: str
    wrapped: str
    digest: str = ""

    def associated(self) -> bytes:
        """What the wrapped key is bound to."""
        return msgspec.json.encode(
            ["dek", self.format, self.vault_id, self.version, self.kdf, self.salt, self.verifier]
        )

    def checksum(self) -> str:
        """What ``digest`` must be."""
        text = msgspec.json.encode(msgspec.structs.replace(self, digest=""))
        return hashlib.sha256(text).hexdigest()


def parse_header(text: str, floor: KdfParams) -> Header:
    """A stored header, checked as far as it can be without the password.

    Raises:
        VaultTampered: damaged, of an unknown format, or with a KDF cheaper than ``floor``.
    """
    try:
        header = msgspec.json.decode(text, type=Header)
    except (msgspec.DecodeError, UnicodeError):
        raise damaged("it cannot be read") from None
    if header.format != FORMAT:
        raise damaged(f"format {header.format} is unknown to this release")
    if not hmac.compare_digest(header.digest.encode(), header.checksum().encode()):
        raise damaged("its checksum does not fit")
    if not header.kdf.reaches(floor):
        raise damaged("its password hashing is weaker than this server allows")
    if not CEILING.reaches(header.kdf):
        raise damaged("its password hashing costs more than this server allows")
    if text.encode() != msgspec.json.encode(header) or len(from_text(header.salt)) != SALT_BYTES:
        raise damaged("it is not written as this server writes it")
    return header


class Sealed:
    """A sealed text taken apart once, so that opening it is one decryption."""

    __slots__ = ("associated", "body", "nonce")

    def __init__(self, text: str, associated: bytes) -> None:
        try:
            raw = from_text(text)
        except VaultTampered:
            raw = b""  # fails its tag like any other damage
        self.nonce = raw[:NONCE_BYTES].ljust(NONCE_BYTES, b"\0")
        self.body = raw[NONCE_BYTES:]
        self.associated = associated


def wipe(key: bytearray) -> None:
    """Overwrite key bytes. Copies that Python or a library made are out of reach."""
    key[:] = bytes(len(key))


def as_text(data: bytes) -> str:
    """The stored spelling of some bytes."""
    return b64encode(data).decode()


def from_text(text: str) -> bytes:
    """The bytes of a stored text; VaultTampered when it is not as ``as_text`` spells it."""
    # Base64 has several spellings of some values; only our own is accepted, so that every flipped
    # bit of a stored text is noticed.
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise damaged("a value is not base64") from None
    if as_text(data) != text:
        raise damaged("a value is not written as this server writes it")
    return data


def damaged(why: str) -> VaultTampered:
    """The error for a header that does not hold together."""
    return VaultTampered(
        f"The vault's header was changed or damaged: {why}.",
        hint="Restore the database from a backup; see the guide on the vault.",
    )
