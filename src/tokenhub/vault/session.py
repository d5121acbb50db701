"""Seal and open: from the password to the data key, and what can be done while it is there.

The first unlock loads this module: the cryptography library takes 8 ms and 4 MB, which a server
whose vault stays locked can do without.
"""

from __future__ import annotations

import hmac
import os
import threading

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tokenhub.core.errors import VaultLocked
from tokenhub.vault.envelope import (
    FORMAT,
    KEY_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    Header,
    KdfParams,
    Sealed,
    VaultTampered,
    WrongPassword,
    as_text,
    damaged,
    from_text,
    wipe,
)
from tokenhub.vault.rows import RESTORE, Manifest, Row

_WRAP = b"tokenhub vault 1 wrap"
_CHECK = b"tokenhub vault 1 check"


class Session:
    """The data key of an unlocked vault; ``alive`` until ``end``."""

    def __init__(self, vault_id: str, dek: bytearray) -> None:
        self.vault_id = vault_id
        self.cipher = AESGCM(dek)
        self._dek = dek
        self.alive = True
        self._mutex = threading.Lock()
        self._about_manifest = msgspec.json.encode(["manifest", vault_id])

    def end(self) -> None:
        """Overwrite and drop the key; what is being sealed on the writer's thread ends first."""
        with self._mutex:
            self.alive = False
            wipe(self._dek)
            del self.cipher

    def seal(self, plain: bytes, associated: bytes) -> str:
        """Seal under the data key.

        Raises:
            VaultLocked: the session has ended.
        """
        with self._mutex:
            if not self.alive:
                raise VaultLocked
            return seal(self.cipher, plain, associated)

    def open(self, sealed: Sealed) -> bytes:
        """A secret, decrypted; VaultTampered as ``unseal``."""
        return unseal(self.cipher, sealed)

    def can_open(self, row: Row) -> bool:
        """Whether a row is as it was sealed."""
        try:
            self.open(row.sealed)
        except VaultTampered:
            return False
        return True

    def open_manifest(self, text: str) -> Manifest:
        """The manifest out of its sealed text."""
        with self._mutex:
            if not self.alive:
                raise VaultLocked
            try:
                plain = unseal(self.cipher, Sealed(text, self._about_manifest))
            except VaultTampered:
                raise VaultTampered(
                    "The vault's list of secrets was changed outside the vault.", hint=RESTORE
                ) from None
        return msgspec.json.decode(plain, type=Manifest)

    def seal_manifest(self, manifest: Manifest) -> str:
        """The sealed text of a manifest."""
        return self.seal(msgspec.json.encode(manifest), self._about_manifest)


def new_header(password: bytes, dek: bytearray, vault_id: str, version: int, kdf: KdfParams) -> str:
    """Wrap a data key under a password, with a fresh salt; the header's text. Slow on purpose."""
    salt = os.urandom(SALT_BYTES)
    kek, verifier = _keys(password, salt, kdf)
    bare = Header(
        format=FORMAT,
        vault_id=vault_id,
        version=version,
        kdf=kdf,
        salt=as_text(salt),
        verifier=as_text(verifier),
        wrapped="",
    )
    nonce = os.urandom(NONCE_BYTES)
    wrapped = nonce + AESGCM(kek).encrypt(nonce, bytes(dek), bare.associated())
    wipe(kek)
    header = msgspec.structs.replace(bare, wrapped=as_text(wrapped))
    header = msgspec.structs.replace(header, digest=header.checksum())
    return msgspec.json.encode(header).decode()


def unwrap(header: Header, password: bytes) -> bytearray:
    """The data key; ``wipe`` it after use. Slow on purpose.

    Raises:
        WrongPassword: the password is not the header's.
        VaultTampered: it is, but the wrapped key is damaged.
    """
    kek, verifier = _keys(password, from_text(header.salt), header.kdf)
    try:
        if not hmac.compare_digest(verifier, from_text(header.verifier)):
            raise WrongPassword
        wrapped = from_text(header.wrapped)
        if len(wrapped) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
            raise damaged("the wrapped key has the wrong length")
        dek = bytearray(KEY_BYTES)
        nonce, sealed = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            AESGCM(kek).decrypt_into(nonce, sealed, header.associated(), dek)
        except InvalidTag:
            raise damaged("the wrapped key was changed") from None
        return dek
    finally:
        wipe(kek)


def seal(cipher: AESGCM, plain: bytes, associated: bytes) -> str:
    """Encrypt under a fresh random nonce; base64 of nonce, ciphertext, tag."""
    nonce = os.urandom(NONCE_BYTES)
    return as_text(nonce + cipher.encrypt(nonce, plain, associated))


def unseal(cipher: AESGCM, sealed: Sealed) -> bytes:
    """The plaintext.

    Raises:
        VaultTampered: text, associated data or key are not those of ``seal``.
    """
    try:
        return cipher.decrypt(sealed.nonce, sealed.body, sealed.associated)
    except InvalidTag:
        raise VaultTampered("A stored secret was changed outside the vault.") from None


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
