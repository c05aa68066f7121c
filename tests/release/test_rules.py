import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import FedgeError, ReleaseError, SignatureError
from fedge.release.manifest import MAX_MANIFEST_BYTES
from fedge.release.rules import ReleaseRules, sign_release

from .build import CREATED, EXPIRES, FEDERATION, KEY, MODEL, NOW, OTHER_KEY, RULES, manifest, signed


def test_good_release_is_accepted() -> None:
    assert RULES.accept(*signed(), NOW) == manifest()


@pytest.mark.parametrize("version", [1, 2])
def test_rollback_is_refused(version: int) -> None:
    with pytest.raises(ReleaseError, match="rollback"):
        RULES.accept(*signed(version=version, parent=None), NOW)


def test_replay_of_an_accepted_release_is_refused() -> None:
    release = signed()
    after = RULES.after(RULES.accept(*release, NOW))
    with pytest.raises(ReleaseError, match="replay"):
        after.accept(*release, NOW)
    assert after.accept(*signed(version=4), NOW).version == 4


def test_going_back_to_an_older_release_does_not_lower_the_bar() -> None:
    after = RULES.after(manifest(version=9)).after(manifest(version=4))
    assert after.current == 9


def test_first_release_is_accepted_by_a_new_device() -> None:
    rules = ReleaseRules(FEDERATION, (KEY.public,))
    assert rules.accept(*signed(version=1, parent=None), NOW).version == 1


def test_tampered_manifest_is_refused_at_every_byte() -> None:
    content, signature, model = signed()
    for at in range(len(content)):
        broken = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(SignatureError):
            RULES.accept(broken, signature, model, NOW)


def test_tampered_signature_is_refused_at_every_byte() -> None:
    content, signature, model = signed()
    for at in range(len(signature)):
        broken = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        with pytest.raises(SignatureError):
            RULES.accept(content, broken, model, NOW)


def test_tampered_model_is_refused() -> None:
    content, signature, model = signed()
    with pytest.raises(ReleaseError, match="SHA-256"):
        RULES.accept(content, signature, model[:-1] + b"\0", NOW)


@pytest.mark.parametrize("model", [b"", MODEL[:-1], MODEL + b"\0"])
def test_model_of_another_size_is_refused(model: bytes) -> None:
    content, signature, _ = signed()
    with pytest.raises(ReleaseError, match="bytes"):
        RULES.accept(content, signature, model, NOW)


def test_mix_and_match_of_two_genuine_releases_is_refused() -> None:
    new, old = signed(version=5), signed(version=4)
    with pytest.raises(SignatureError):
        RULES.accept(new[0], old[1], MODEL, NOW)


def test_wrong_key_is_refused() -> None:
    content = manifest().to_bytes()
    with pytest.raises(SignatureError):
        RULES.accept(content, sign_release(OTHER_KEY, content), MODEL, NOW)


def test_signature_made_for_another_purpose_is_refused() -> None:
    content = manifest().to_bytes()
    for purpose in ("update", "fedge", ""):
        with pytest.raises(SignatureError):
            RULES.accept(content, KEY.sign(purpose, content), MODEL, NOW)


def test_any_one_of_several_trusted_keys_is_enough() -> None:
    rules = ReleaseRules(FEDERATION, (OTHER_KEY.public, KEY.public))
    assert rules.accept(*signed(), NOW).version == 3


def test_nobody_is_trusted_without_a_key() -> None:
    with pytest.raises(SignatureError, match="no key"):
        ReleaseRules(FEDERATION, ()).accept(*signed(), NOW)


def test_other_federation_is_refused() -> None:
    with pytest.raises(ReleaseError, match="federation"):
        RULES.accept(*signed(federation="f" * 32), NOW)


@pytest.mark.parametrize("now", [EXPIRES, EXPIRES + 1, 2**62])
def test_expired_release_is_refused(now: int) -> None:
    with pytest.raises(ReleaseError, match="expired"):
        RULES.accept(*signed(), now)


@pytest.mark.parametrize("now", [0, CREATED, EXPIRES - 1])
def test_release_is_accepted_until_it_expires_even_by_a_clock_that_is_behind(now: int) -> None:
    assert RULES.accept(*signed(), now).version == 3


def test_nothing_of_an_unsigned_manifest_is_parsed() -> None:
    hostile = b"[" * 100_000
    with pytest.raises(SignatureError):
        RULES.accept(hostile, bytes(64), MODEL, NOW)


def test_signed_but_malformed_manifest_is_refused() -> None:
    raw = json.loads(manifest().to_bytes()) | {"surprise": 1}
    content = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ReleaseError, match="unknown key"):
        RULES.accept(content, sign_release(KEY, content), MODEL, NOW)


def test_oversized_manifest_is_refused_before_it_is_hashed() -> None:
    with pytest.raises(ReleaseError, match="limit"):
        RULES.accept(bytes(MAX_MANIFEST_BYTES + 1), bytes(64), MODEL, NOW)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=70), st.binary(max_size=50), st.integers())
def test_garbage_raises_only_the_error_tree(content: bytes, signature: bytes, model: bytes, now: int) -> None:
    with pytest.raises(FedgeError):
        RULES.accept(content, signature, model, now)
