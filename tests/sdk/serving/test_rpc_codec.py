"""Reading a request apart agrees with protobuf's own parser, on good bytes and on bad ones."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from saccade.serving.protocol import inference_pb2 as pb
from saccade.serving.rpc_codec import parse_infer


def message(tensors: int = 2) -> bytes:
    request = pb.ModelInferRequest(model_name="tiny", id="7")
    request.parameters["timeout"].int64_param = 5_000_000
    for index in range(tensors):
        request.inputs.add(name=f"image{index}", datatype="FP32", shape=[1, 3])
        request.raw_input_contents.append(bytes(range(index % 200)))
    return bytes(request.SerializeToString())


def as_read_apart(data: bytes) -> Any:
    """The message put together again; None where it is refused."""
    try:
        request, raw = parse_infer(data)
    except DecodeError:
        return None
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(map(bytes, raw))
    return request


def as_protobuf_reads(data: bytes) -> Any:
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return None


@pytest.mark.parametrize("tensors", [0, 1, 2, 127, 128, 300])
def test_good_requests_are_what_was_sent(tensors: int) -> None:
    data = message(tensors)
    assert as_read_apart(data) == as_protobuf_reads(data)
    assert len(parse_infer(data)[1]) == tensors


def test_tensors_are_not_copied() -> None:
    data = message()
    assert all(each.obj is data for each in parse_infer(data)[1])


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",  # a length that is missing
        b"\x3a\x05abc",  # and one that is too long
        b"\x3a" + b"\xff" * 100,  # and one without an end
        b"\x3b\x3c",  # a group
        b"\x79" + bytes(8) + b"\x7d" + bytes(4),  # unknown fields of fixed size
        b"\x3a\x01x\x0a\x01y\x3a\x01z",  # raw contents around another field
        b"\xba\x00\x01x",  # the tag of raw contents, written longer than it need be
        b"\x00\x00",  # no field has this number
        b"\x0a\x01\xff",  # a text that is none
    ],
)
def test_odd_messages_are_read_as_protobuf_does(data: bytes) -> None:
    assert as_read_apart(data) == as_protobuf_reads(data)


def test_mutated_messages_are_read_as_protobuf_does() -> None:
    rng, whole = random.Random(0), message()
    refused = 0
    for _ in range(5000):
        data = bytearray(whole)
        for _ in range(rng.randint(0, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = bytes(data[: len(data) - rng.choice([0, 0, 0, 1, 20])])
        expected = as_protobuf_reads(cut)
        assert as_read_apart(cut) == expected, cut
        refused += expected is None
    assert 500 < refused < 4500
