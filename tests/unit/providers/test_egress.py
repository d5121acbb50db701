# ruff: noqa: RUF001 - look-alike characters are what is tested

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenhub.core.errors import InvalidRequest
from tokenhub.providers.egress import (
    AddressRefused,
    EgressPolicy,
    check_address,
    is_private,
    parse_base_url,
)

FUZZ = int(os.environ.get("TOKENHUB_FUZZ", "300"))
# More inputs than a sample get more than the two minutes that every test has.
pytestmark = pytest.mark.timeout(120 + FUZZ // 100)

GOOD = {
    "https://api.openai.com": ("https://api.openai.com", "https://api.openai.com:443"),
    "https://api.openai.com/": ("https://api.openai.com", "https://api.openai.com:443"),
    "https://api.openai.com/v1": ("https://api.openai.com", "https://api.openai.com:443"),
    "https://api.openai.com/v1/": ("https://api.openai.com", "https://api.openai.com:443"),
    "https://api.openai.com///": ("https://api.openai.com", "https://api.openai.com:443"),
    "https://api.openai.com:443/v1": ("https://api.openai.com", "https://api.openai.com:443"),
    "HTTPS://API.OpenAI.com/v1": ("https://api.openai.com", "https://api.openai.com:443"),
    "https://api.openai.com.": ("https://api.openai.com", "https://api.openai.com:443"),
    "https://h.test/v1/v1": ("https://h.test/v1", "https://h.test:443"),
    "https://h.test/openai/v1": ("https://h.test/openai", "https://h.test:443"),
    "https://h.test/v10": ("https://h.test/v10", "https://h.test:443"),
    "https://h.test/xv1": ("https://h.test/xv1", "https://h.test:443"),
    "https://h.test/V1": ("https://h.test/V1", "https://h.test:443"),
    "https://h.test/api/v2": ("https://h.test/api/v2", "https://h.test:443"),
    "https://h.test/a%20b/c": ("https://h.test/a%20b/c", "https://h.test:443"),
    "https://h.test/accounts/a@b": ("https://h.test/accounts/a@b", "https://h.test:443"),
    "http://localhost:11434": ("http://localhost:11434", "http://localhost:11434"),
    "http://localhost": ("http://localhost", "http://localhost:80"),
    "http://127.0.0.1:8000/v1": ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    "http://127.0.0.1.": ("http://127.0.0.1", "http://127.0.0.1:80"),
    "http://10.0.0.5": ("http://10.0.0.5", "http://10.0.0.5:80"),
    "http://172.17.0.1:8080": ("http://172.17.0.1:8080", "http://172.17.0.1:8080"),
    "http://192.168.1.10:1234": ("http://192.168.1.10:1234", "http://192.168.1.10:1234"),
    "http://100.64.0.1": ("http://100.64.0.1", "http://100.64.0.1:80"),
    "http://[::1]:8000": ("http://[::1]:8000", "http://[::1]:8000"),
    "http://[0:0:0:0:0:0:0:1]": ("http://[::1]", "http://[::1]:80"),
    "http://[fd12:3456::1]/v1": ("http://[fd12:3456::1]", "http://[fd12:3456::1]:80"),
    "https://[2606:4700::1111]": ("https://[2606:4700::1111]", "https://[2606:4700::1111]:443"),
    "http://[::ffff:127.0.0.1]": ("http://[::ffff:7f00:1]", "http://[::ffff:7f00:1]:80"),
    "http://[0::FFFF:0A00:0001]": ("http://[::ffff:a00:1]", "http://[::ffff:a00:1]:80"),
    "http://[::7f00:1]": ("http://[::7f00:1]", "http://[::7f00:1]:80"),
    "http://[::127.0.0.1]": ("http://[::7f00:1]", "http://[::7f00:1]:80"),
    "http://ollama:11434": ("http://ollama:11434", "http://ollama:11434"),
    "http://my_model:80": ("http://my_model", "http://my_model:80"),
    "http://xn--bcher-kva.example": ("http://xn--bcher-kva.example", "http://xn--bcher-kva.example:80"),
    "http://bücher.example": ("http://xn--bcher-kva.example", "http://xn--bcher-kva.example:80"),
    "http://例え.テスト": ("http://xn--r8jz45g.xn--zckzah", "http://xn--r8jz45g.xn--zckzah:80"),
    "http://1.example": ("http://1.example", "http://1.example:80"),
    "http://0x7f.example": ("http://0x7f.example", "http://0x7f.example:80"),
    "http://h.test:1": ("http://h.test:1", "http://h.test:1"),
    "http://h.test:65535": ("http://h.test:65535", "http://h.test:65535"),
    "http://h.test:00080": ("http://h.test", "http://h.test:80"),
}  # fmt: skip

MALFORMED = [
    "", " ", "api.openai.com", "//h.test", "/v1", "https:", "https:/h.test", "https:///v1",
    "https://", "https://:443", "http://.", "http://..", "http://h..test", "http://.h.test",
    "ftp://h.test", "file:///etc/passwd", "gopher://h.test", "unix:///run/x", "javascript://h",
    "data://h", "ws://h.test", "wss://h.test", "httpx://h.test", "https+unix://h", "http:h.test",
    "http://user@h.test", "http://user:pw@h.test", "http://@h.test", "http://h.test@evil.test",
    "http://h.test:80@evil.test", "http://127.0.0.1@169.254.169.254", "http://a:b@c@d",
    "http://h.test?x=1", "http://h.test/?x", "http://h.test#f", "http://h.test/v1?", "http://h#",
    "http://evil.test?@h.test", "http://evil.test#@h.test",
    "http://h.test\\@evil.test", "http:\\\\h.test", "http://h.test/\\..", "http://evil\\.test",
    " http://h.test", "http://h.test ", "http://h.test/a b", "http://h .test", "\thttp://h.test",
    "http://h.test\n", "http://h.test\r\nX: y", "http://h\0.test", "http://h.test/\x7f",
    "http://h.test\u2028", "http://h.test/\u00a0", "http://h.test\u3000", "ht\ntp://h.test",
    "http://h.test/\x00", "http://h.test/é", "http://h.test/%", "http://h.test/%zz",
    "http://h.test/%2", "http://h.test/a//b", "http://h.test/.", "http://h.test/..",
    "http://h.test/../v1", "http://h.test/a/../b", "http://h.test/%2e%2e/x", "http://h.test/.%2E",
    "http://h.test/<x>", 'http://h.test/"', "http://h.test/{x}", "http://h.test/|", "http://h/`",
    "http://h.test:0", "http://h.test:65536", "http://h.test:99999", "http://h.test:-1",
    "http://h.test:+80", "http://h.test:8 0", "http://h.test:", "http://h.test:80:80",
    "http://h.test:x", "http://h.test:8080a", "http://h.test:０", "http://h.test:¹",
    "http://h.test:100000000000000000000", "http://h.test:0x50",
    "http://-h.test", "http://h-.test", "http://h_%2e.test", "http://h%2etest", "http://h*.test",
    "http://h,test", "http://h;test", "http://'h'", "http://h$.test", "http://(h)", "http://h!",
    "http://" + "a" * 64 + ".test", "http://" + "a." * 130 + "test", "http://h.test/" + "a" * 3000,
    "http://[::1", "http://::1", "http://[::1]x", "http://[::1]:x", "http://[::1]80", "http://[]",
    "http://[127.0.0.1]", "http://[::g]", "http://[1::2::3]", "http://[fe80::1%25eth0]",
    "http://[::1%lo]", "http://[v1.x]", "http://[[::1]]", "http://2001:db8::1:80",
    # Other spellings of IPv4 addresses, mostly of 127.0.0.1 and 169.254.169.254.
    "http://2130706433", "http://0x7f000001", "http://017700000001", "http://127.1", "http://127.0.1",
    "http://0177.0.0.1", "http://0x7f.0.0.1", "http://127.0.0.0x1", "http://127.0.0.01",
    "http://2852039166", "http://0xa9fea9fe", "http://0251.0376.0251.0376", "http://169.254.43518",
    "http://169.16689662", "http://0xa9.0xfe.0xa9.0xfe", "http://0xA9FEA9FE", "http://1.2.3.4.5",
    "http://256.1.1.1", "http://1.2.3.256", "http://999", "http://4294967296", "http://0x",
    "http://127.0.0.1..", "http://127..1", "http://1.2.3.0x", "http://0", "http://00.0.0.0",
    "http://a.1", "http://h.0x1", "http://１２７.0.0.0x1", "http://127。1", "http://２１３０７０６４３３",
    "http://exa＠mple.test", "http://h.test／evil", "http://h.test？x", "http://h.test＃x",
    "http://\u00ad", "http://xn--\u00fc", "http://a\u200b.test\u200d.",
]  # fmt: skip

REFUSED = [
    "http://169.254.169.254", "http://169.254.169.254/latest/meta-data", "http://169.254.0.1:8000",
    "https://169.254.170.2", "http://100.100.100.200", "http://168.63.129.16", "http://192.0.0.192",
    "http://0.0.0.0", "http://0.0.0.0:8080", "http://0.1.2.3", "http://224.0.0.1",
    "http://239.255.255.250", "http://240.0.0.1", "http://255.255.255.255", "http://169.254.169.254.",
    "http://１６９.254.169.254", "http://169。254。169。254", "http://①⑥⑨.254.169.254",
    "http://[::]", "http://[fe80::1]", "http://[febf::1]", "http://[fec0::1]", "http://[ff02::1]",
    "http://[fd00:ec2::254]", "http://[fd00:ec2::23]", "http://[fd20:ce::254]",
    "http://[::ffff:169.254.169.254]", "http://[::ffff:a9fe:a9fe]", "http://[::ffff:0.0.0.0]",
    "http://[::169.254.169.254]", "http://[::ffff:224.0.0.1]", "http://[::ffff:100.100.100.200]",
    "http://[64:ff9b::169.254.169.254]", "http://[64:ff9b::6464:64c8]", "http://[64:ff9b::]",
    "http://[64:ff9b:1::a9fe:a9fe]", "http://[2002:a9fe:a9fe::]", "http://[2002:a9fe:a9fe::1]",
    "http://[2002:6464:64c8:1::]", "http://[2002:e000:1::]", "http://[2001:0:a9fe:a9fe::]",
    "http://[2001:0:102:304::5601:5601]", "http://[2a00::5efe:a9fe:a9fe]",
    "http://[fd00::200:5efe:a9fe:a9fe]", "http://[0:0:0:0:0:ffff:a9fe:a9fe]",
]  # fmt: skip


@pytest.mark.parametrize(("url", "expected"), GOOD.items(), ids=GOOD)
def test_good_urls_are_normalised(url, expected):
    origin = parse_base_url(url)
    assert (origin.url, origin.origin) == expected
    again = parse_base_url(origin.url)
    assert again.origin == origin.origin


@pytest.mark.parametrize("url", MALFORMED, ids=[repr(url)[:50] for url in MALFORMED])
def test_malformed_urls_are_refused_with_a_reason(url):
    with pytest.raises(InvalidRequest) as caught:
        parse_base_url(url)
    error = caught.value
    assert (error.code, error.param) == ("invalid_base_url", "base_url")
    assert error.hint
    # The message must be fit for logs: nothing of the URL, which may hold a password.
    assert "pw" not in error.message
    assert error.message.isprintable()


@pytest.mark.parametrize("url", REFUSED)
def test_forbidden_addresses_are_refused(url):
    with pytest.raises(InvalidRequest) as caught:
        parse_base_url(url)
    assert caught.value.code == "base_url_refused"


def test_the_corpus_is_as_large_as_promised():
    assert len(set(GOOD) | set(MALFORMED) | set(REFUSED)) >= 200


def test_the_parts():
    origin = parse_base_url("https://h.test:8443/openai/v1")
    assert (origin.scheme, origin.host, origin.port, origin.path) == (
        "https", "h.test", 8443, b"/openai",
    )  # fmt: skip
    assert (origin.host_header, origin.tls, origin.literal) == (b"h.test:8443", True, False)
    assert parse_base_url("https://h.test").host_header == b"h.test"
    six = parse_base_url("http://[::1]:8000")
    assert (six.host, six.host_header, six.literal) == ("::1", b"[::1]:8000", True)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("https://api.test", False),
        ("http://api.example.com", False),
        ("http://1.1.1.1", False),
        ("http://[2606:4700::1111]", False),
        ("http://localhost", True),
        ("https://localhost", True),
        ("http://127.0.0.1", True),
        ("http://192.168.0.1", True),
        ("http://[::1]", True),
        ("http://[::ffff:10.0.0.1]", True),
        ("http://[::ffff:8.8.8.8]", False),
        ("http://[fd12::1]", True),
        ("http://ollama", True),
        ("http://gpu.local", True),
        ("http://model.svc.internal", True),
        ("http://local", True),
        ("http://notlocal.example", False),
    ],
)
def test_what_is_plainly_local(url, local):
    assert parse_base_url(url).local is local


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "1.1.1.1",
     "100.100.100.199", "::1", "fd00::1", "fd12:3456::1", "2606:4700::1111", "::ffff:127.0.0.1",
     "64:ff9b::8.8.8.8", "2002:0808:0808::1", "::ffff:10.0.0.1"],
)  # fmt: skip
def test_private_loopback_and_public_addresses_pass(address):
    check_address(address)


def test_the_reason_writes_an_address_as_the_url_does():
    with pytest.raises(
        AddressRefused, match=r"::ffff:a9fe:a9fe is .*stands for 169\.254\.169\.254"
    ):
        check_address("::ffff:169.254.169.254")


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True), ("127.255.255.255", True), ("10.0.0.0", True), ("11.0.0.0", False),
        ("172.15.255.255", False), ("172.16.0.0", True), ("172.31.255.255", True),
        ("172.32.0.0", False), ("192.168.255.255", True), ("192.169.0.0", False), ("::1", True),
        ("::2", False), ("fc00::", True), ("fdff::1", True), ("fe00::", False), ("fbff::1", False),
        ("::ffff:10.0.0.1", True), ("::ffff:8.8.8.8", False), ("8.8.8.8", False),
        # The standard library says one thing or the other, depending on its version.
        ("64:ff9b:1::1", False), ("2001:1::1", False), ("2001:4:112::1", False), ("2002::", False),
        ("2001:20::1", False), ("2002:0808:0808::1", False), ("192.0.0.8", False),
    ],
)  # fmt: skip
def test_what_is_private_is_the_same_on_each_python(address, private):
    assert is_private(ip_address(address)) is private


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "fe80::1%eth0x", "0x7f.1", "1.2.3.4/8"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(AddressRefused):
        check_address(text)


METADATA = int(IPv4Address("169.254.169.254"))


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
@example(METADATA, 0)
@settings(max_examples=FUZZ, deadline=None)
def test_every_ipv6_form_of_an_ipv4_address_is_judged_like_it(number, noise):
    four = IPv4Address(number)
    forms = [
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x0064FF9B << 96) | number),
        IPv6Address((0x2002 << 112) | (number << 80) | (noise & (2**80 - 1))),
        IPv6Address((0x20010000 << 96) | (number << 64) | (noise & 0xFFFFFFFF)),
    ]
    try:
        check_address(str(four))
    except AddressRefused:
        for form in forms:
            with pytest.raises(AddressRefused):
                check_address(str(form))


@given(st.ip_addresses())
@settings(max_examples=FUZZ, deadline=None)
def test_the_rules_agree_with_the_standard_library(address):
    special = (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.is_reserved)
    )
    try:
        check_address(str(address))
    except AddressRefused:
        return
    assert not special


@given(st.ip_addresses(v=6))
@example(IPv6Address("::ffff:0.0.0.1"))
@settings(max_examples=FUZZ, deadline=None)
def test_an_address_has_one_text(address):
    # The C library writes some of them with dots, and takes all of ours for what they are.
    try:
        origin = parse_base_url(f"http://[{socket.inet_ntop(socket.AF_INET6, address.packed)}]")
    except InvalidRequest:
        return
    assert origin.origin == parse_base_url(f"http://[{address.exploded}]").origin
    assert set(origin.host) <= set("0123456789abcdef:")
    assert socket.inet_pton(socket.AF_INET6, origin.host) == address.packed


HOSTS = st.one_of(
    st.text(st.sampled_from("abz019.-_x:[]%@\\/?#۰０。é "), max_size=20),
    st.ip_addresses().map(lambda ip: f"[{ip}]" if ip.version == 6 else str(ip)),
    st.from_regex(r"(0x)?[0-9a-f]{1,10}(\.(0x)?[0-9a-f]{1,4}){0,4}", fullmatch=True),
)


@given(
    st.sampled_from(["http://", "https://", "HTTP://", "ftp://", ""]),
    HOSTS,
    st.one_of(st.just(""), st.integers(-1, 70_000).map(lambda port: f":{port}")),
    st.text(st.sampled_from("/v1.%2eab?#@\\ \n~"), max_size=12),
)
@settings(max_examples=FUZZ * 3, deadline=None)
def test_whatever_passes_is_normal_and_safe(scheme, host, port, path):
    try:
        origin = parse_base_url(scheme + host + port + path)
    except InvalidRequest:
        return
    again = parse_base_url(origin.url)
    assert again.origin == origin.origin
    assert origin.url.isascii()
    assert origin.url.isprintable()
    assert not set(" ?#@\\") & set(origin.url.partition("://")[2].partition("/")[0])
    assert b".." not in origin.path.split(b"/")
    assert 0 < origin.port < 65536
    assert origin.host == origin.host.lower()
    if origin.literal:
        check_address(origin.host)
    else:
        with pytest.raises(ValueError):
            ip_address(origin.host)


class TestOwnListeners:
    @pytest.mark.parametrize(
        ("listener", "address", "port", "refused"),
        [
            (("127.0.0.1", 8080), "127.0.0.1", 8080, True),
            (("127.0.0.1", 8080), "::ffff:127.0.0.1", 8080, True),
            (("127.0.0.1", 8080), "127.0.0.1", 8000, False),
            (("127.0.0.1", 8080), "10.0.0.1", 8080, False),
            (("0.0.0.0", 8080), "127.0.0.1", 8080, True),
            (("0.0.0.0", 8080), "127.9.9.9", 8080, True),
            (("0.0.0.0", 8080), "::1", 8080, True),
            (("::", 8080), "127.0.0.1", 8080, True),
            (("::ffff:0.0.0.0", 8080), "127.0.0.1", 8080, True),
            (("0.0.0.0", 8080), "10.0.0.1", 8080, False),
            (("::1", 8080), "::1", 8080, True),
        ],
    )
    def test_before_connecting(self, listener, address, port, refused):
        policy = EgressPolicy([listener])
        if refused:
            with pytest.raises(AddressRefused):
                policy.check(address, port)
        else:
            policy.check(address, port)

    def test_after_connecting(self):
        policy = EgressPolicy()
        policy.refuse_listener("0.0.0.0", 8080)
        with pytest.raises(AddressRefused):
            policy.check_connected("172.17.0.2", "172.17.0.2", 8080)
        policy.check_connected("172.17.0.2", "172.17.0.2", 8000)
        policy.check_connected("172.17.0.2", "172.17.0.3", 8080)

    def test_a_listener_is_an_address(self):
        with pytest.raises(ValueError):
            EgressPolicy([("localhost", 8080)])
