# SPDX-License-Identifier: MIT
"""Tests of what signatures and keys are computed over."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from tsmfs.spdm import transcript
from tsmfs.spdm.algorithms import BaseHash
from tsmfs.spdm.messages import ErrorCode, SpdmError
from tsmfs.spdm.transcript import (
    SessionTranscript,
    SigningContext,
    Transcript,
    Transcripts,
    l1,
    signing_message,
)


def test_what_is_signed_begins_with_a_prefix_of_a_hundred_bytes() -> None:
    message = signing_message(0x12, SigningContext.CHALLENGE_AUTH, b"digest")
    assert message == (
        b"dmtf-spdm-v1.2.*" * 4 + bytes(4) + b"responder-challenge_auth signing" + b"digest"
    )
    for context in SigningContext:
        combined = signing_message(0x13, context, b"")
        assert len(combined) == 100
        assert combined.startswith(b"dmtf-spdm-v1.3.*dmtf-spdm-v1.3.*")
        assert combined.endswith(b"\0" + context.value)


def test_a_transcript_that_gets_too_long_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "TRANSCRIPT_LIMIT", 8)
    collected = Transcript()
    collected.append(b"1234", b"5678")
    assert (bytes(collected), len(collected)) == (b"12345678", 8)
    with pytest.raises(SpdmError) as caught:
        collected.append(b"9")
    assert caught.value.code == ErrorCode.UNSPECIFIED
    assert len(collected) == 0


def test_digests_cover_the_messages_in_their_order() -> None:
    kept = Transcripts()
    kept.vca.append(b"vca")
    kept.b.append(b"digests", b"certificate")
    assert (
        kept.m1(BaseHash.SHA_256, b"challenge", b"auth")
        == hashlib.sha256(b"vcadigestscertificatechallengeauth").digest()
    )
    measured = Transcript()
    measured.append(b"get", b"measurements")
    expected = hashlib.sha384(b"vcagetmeasurements").digest()
    assert kept.l1(BaseHash.SHA_384, measured) == expected
    assert l1(BaseHash.SHA_384, b"vca", b"getmeasurements") == expected


def test_the_hash_of_a_session_goes_on_after_each_digest() -> None:
    th = SessionTranscript(BaseHash.SHA_256, b"vca", b"chain")
    th.append(b"exchange")
    first = hashlib.sha256(b"vcachainexchange").digest()
    assert th.digest() == first == th.digest()
    assert th.verify_data(b"key") == hmac.digest(b"key", first, "sha256")
    th.append(b"finish")
    assert th.digest() == hashlib.sha256(b"vcachainexchangefinish").digest()
