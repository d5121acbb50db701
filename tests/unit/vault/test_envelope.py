"""The envelope: what was sealed opens, what was changed in any bit does not."""

from __future__ import annotations

import hmac
import os

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from tokenhub.vault import session
from tokenhub.vault.envelope import (
    FLOOR,
    KdfParams,
    Sealed,
    VaultTampered,
    WrongPassword,
    as_text,
    parse_header,
)
from tokenhub.vault.rows import associated_data
from tokenhub.vault.session import new_header, seal, unseal, unwrap

QUICK = KdfParams(memory_kib=8, iterations=1, lanes=1)
KEY = bytes(range(32))
CIPHER = AESGCM(KEY)
PASSWORD = b"correct horse"


def flip(text: str, bit: int) -> str:
    data = bytearray(text.encode())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    return data.decode("latin-1")


def header_text(kdf=QUICK):
    return new_header(PASSWORD, bytearray(KEY), "v1", 1, kdf)


HEADER = header_text()


@given(st.binary(), st.binary())
def test_what_was_sealed_opens(plain, associated):
    assert unseal(CIPHER, Sealed(seal(CIPHER, plain, associated), associated)) == plain


@given(st.binary(max_size=80), st.binary(max_size=40), st.integers(min_value=0))
def test_any_flipped_bit_of_the_sealed_text_is_refused(plain, associated, bit):
    with pytest.raises(VaultTampered):
        unseal(CIPHER, Sealed(flip(seal(CIPHER, plain, associated), bit), associated))


@pytest.mark.parametrize("plain", [b"", b"1", b"22", b"333"])
def test_not_even_the_unused_bits_of_base64_may_change(plain):
    text = seal(CIPHER, plain, b"")
    for bit in range(len(text) * 8):
        with pytest.raises(VaultTampered):
            unseal(CIPHER, Sealed(flip(text, bit), b""))


@given(st.lists(st.tuples(*[st.text(max_size=3)] * 5, st.integers(0, 3)), unique=True, max_size=9))
def test_no_two_secrets_share_their_associated_data(secrets):
    assert len({associated_data(*one) for one in secrets}) == len(secrets)


@pytest.mark.parametrize("place", range(6))
def test_each_property_of_a_secret_is_in_its_associated_data(place):
    about = ["vault", "name", "kind", "owner", "origin", 1]
    other = list(about)
    other[place] = 2 if place == 5 else "other"
    assert associated_data(*about) != associated_data(*other)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_other_associated_data_is_refused(one, other):
    if one == other:
        other += b"x"
    with pytest.raises(VaultTampered):
        unseal(CIPHER, Sealed(seal(CIPHER, b"secret", one), other))


@pytest.mark.parametrize("text", ["", "A", "AAAA", "not base64!", "é", "AAAAAAAAAAAAAAAAAAAAAAAA"])
def test_rubbish_is_refused(text):
    with pytest.raises(VaultTampered):
        unseal(CIPHER, Sealed(text, b""))


def test_sealing_twice_gives_different_texts():
    assert seal(CIPHER, b"same", b"") != seal(CIPHER, b"same", b"")


def test_the_right_password_opens_the_header():
    assert unwrap(parse_header(HEADER, QUICK), PASSWORD) == bytearray(KEY)


@given(st.binary(min_size=1, max_size=40).filter(lambda guess: guess != PASSWORD))
def test_no_other_password_does(guess):
    with pytest.raises(WrongPassword):
        unwrap(parse_header(HEADER, QUICK), guess)


def test_any_flipped_bit_of_the_header_is_refused_before_the_password_is_looked_at():
    for bit in range(len(HEADER) * 8):
        with pytest.raises(VaultTampered):
            parse_header(flip(HEADER, bit), QUICK)


@pytest.mark.parametrize(
    "change",
    [
        {"vault_id": "v2"},
        {"version": 2},
        {"salt": as_text(os.urandom(16))},
        {"verifier": as_text(os.urandom(32))},
        {"wrapped": as_text(os.urandom(60))},
        {"wrapped": as_text(os.urandom(59))},
        {"kdf": KdfParams(memory_kib=16, iterations=1, lanes=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_header_with_a_mended_checksum_does_not_open(change):
    header = msgspec.structs.replace(parse_header(HEADER, QUICK), **change)
    header = msgspec.structs.replace(header, digest=header.checksum())
    reread = parse_header(msgspec.json.encode(header).decode(), QUICK)
    with pytest.raises((VaultTampered, WrongPassword)):
        unwrap(reread, PASSWORD)


def test_the_floor_is_64_mib_3_passes_4_lanes():
    assert KdfParams(memory_kib=65536, iterations=3, lanes=4) == FLOOR == KdfParams()


@pytest.mark.parametrize("weak", [{"memory_kib": 65535}, {"iterations": 2}, {"lanes": 3}])
def test_a_header_below_the_floor_is_refused(weak):
    kdf = msgspec.structs.replace(FLOOR, **weak)
    with pytest.raises(VaultTampered, match="weaker"):
        parse_header(header_text(kdf), FLOOR)


def test_a_header_that_would_take_all_memory_is_refused():
    header = parse_header(HEADER, QUICK)
    greedy = msgspec.structs.replace(header, kdf=KdfParams(2**31, 3, 4), digest="")
    greedy = msgspec.structs.replace(greedy, digest=greedy.checksum())
    with pytest.raises(VaultTampered, match="costs more"):
        parse_header(msgspec.json.encode(greedy).decode(), QUICK)


def test_a_format_of_a_later_release_is_refused():
    later = msgspec.structs.replace(parse_header(HEADER, QUICK), format=2, digest="")
    with pytest.raises(VaultTampered, match="format 2"):
        parse_header(msgspec.json.encode(later).decode(), QUICK)


def test_the_derivation_is_argon2id_then_hkdf_expand():
    # The root is a known answer of the Argon2 reference implementation (its test.c: v=19, t=2,
    # m=2^16, p=1); HKDF-Expand to one block is HMAC(root, info || 1).
    root = bytes.fromhex("09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7")
    keys = session._keys(b"password", b"somesalt", KdfParams(65536, 2, 1))
    infos = (session._WRAP, session._CHECK)
    assert keys == tuple(hmac.digest(root, info + b"\x01", "sha256") for info in infos)
