"""Seal and open: password → keys, header, one sealed text per secret. No state, no database.

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
import os
from base64 import b64decode, b64encode

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tokenhub.core.errors import Unavailable

FORMAT = 1
KEY_BYTES = 32
NONCE_BYTES = 12
SALT_BYTES = 16
TAG_BYTES = 16

_WRAP = b"tokenhub vault 1 wrap"
_CHECK = b"tokenhub vault 1 check"


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
        raise _damaged("it cannot be read") from None
    if header.format != FORMAT:
        raise _damaged(f"format {header.format} is unknown to this release")
    if not hmac.compare_digest(header.digest.encode(), header.checksum().encode()):
        raise _damaged("its checksum does not fit")
    if not header.kdf.reaches(floor):
        raise _damaged("its password hashing is weaker than this server allows")
    if not CEILING.reaches(header.kdf):
        raise _damaged("its password hashing costs more than this server allows")
    if text.encode() != msgspec.json.encode(header) or len(_bytes(header.salt)) != SALT_BYTES:
        raise _damaged("it is not written as this server writes it")
    return header


def new_header(password: bytes, dek: bytearray, vault_id: str, version: int, kdf: KdfParams) -> str:
    """Wrap a data key under a password, with a fresh salt; the header's text. Slow on purpose."""
    salt = os.urandom(SALT_BYTES)
    kek, verifier = _keys(password, salt, kdf)
    bare = Header(
        format=FORMAT,
        vault_id=vault_id,
        version=version,
        kdf=kdf,
        salt=_text(salt),
        verifier=_text(verifier),
        wrapped="",
    )
    nonce = os.urandom(NONCE_BYTES)
    wrapped = nonce + AESGCM(kek).encrypt(nonce, bytes(dek), bare.associated())
    wipe(kek)
    header = msgspec.structs.replace(bare, wrapped=_text(wrapped))
    header = msgspec.structs.replace(header, digest=header.checksum())
    return msgspec.json.encode(header).decode()


def unwrap(header: Header, password: bytes) -> bytearray:
    """The data key; ``wipe`` it after use. Slow on purpose.

    Raises:
        WrongPassword: the password is not the header's.
        VaultTampered: it is, but the wrapped key is damaged.
    """
    kek, verifier = _keys(password, _bytes(header.salt), header.kdf)
    try:
        if not hmac.compare_digest(verifier, _bytes(header.verifier)):
            raise WrongPassword
        wrapped = _bytes(header.wrapped)
        if len(wrapped) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
            raise _damaged("the wrapped key has the wrong length")
        dek = bytearray(KEY_BYTES)
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            AESGCM(kek).decrypt_into(nonce, sealed, header.associated(), dek)
        except InvalidTag:
            raise _damaged("the wrapped key was changed") from None
        return dek
    finally:
        wipe(kek)


def seal(cipher: AESGCM, plain: bytes, associated: bytes) -> str:
    """Encrypt under a fresh random nonce; base64 of nonce, ciphertext, tag."""
    nonce = os.urandom(NONCE_BYTES)
    return _text(nonce + cipher.encrypt(nonce, plain, associated))


class Sealed:
    """A sealed text taken apart once, so that opening it is one decryption."""

    __slots__ = ("_associated", "_body", "_nonce")

    def __init__(self, text: str, associated: bytes) -> None:
        try:
            raw = _bytes(text)
        except VaultTampered:
            raw = b""  # fails its tag like any other damage
        self._nonce = raw[:NONCE_BYTES].ljust(NONCE_BYTES, b"\0")
        self._body = raw[NONCE_BYTES:]
        self._associated = associated

    def open(self, cipher: AESGCM) -> bytes:
        """The plaintext.

        Raises:
            VaultTampered: text, associated data or key are not those of ``seal``.
        """
        try:
            return cipher.decrypt(self._nonce, self._body, self._associated)
        except InvalidTag:
            raise VaultTampered("A stored secret was changed outside the vault.") from None


def wipe(key: bytearray) -> None:
    """Overwrite key bytes. Copies that Python or a library made are out of reach."""
    key[:] = bytes(len(key))


def _keys(password: bytes, salt: bytes, kdf: KdfParams) -> tuple[bytearray, bytes]:
    root = bytearray(KEY_BYTES)
    Argon2id(
        salt=salt,
        length=KEY_BYTES,
        iterations=kdf.iterations,
        lanes=kdf.lanes,
        memory_cost=kdf.memory_kib,
    ).derive_into(password, root)
    kek = bytearray(KEY_BYTES)
    HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=_WRAP).derive_into(root, kek)
    verifier = HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=_CHECK).derive(root)
    wipe(root)
    return kek, verifier


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _bytes(text: str) -> bytes:
    # Base64 has several spellings of some values; only our own is accepted, so that every flipped
    # bit of a stored text is noticed.
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        raise _damaged("a value is not base64") from None
    if _text(data) != text:
        raise _damaged("a value is not written as this server writes it")
    return data


def _damaged(why: str) -> VaultTampered:
    return VaultTampered(
        f"The vault's header was changed or damaged: {why}.",
        hint="Restore the database from a backup; see the guide on the vault.",
    )
