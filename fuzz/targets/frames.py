"""The frame codec. However the stream is split: the same frames and the same verdict; only
FrameError is raised; what is kept between two reads is bounded; frames that are whole stay so
whatever follows them; encoding them again gives what was decoded."""

from __future__ import annotations

from fuzz.target import Target
from imcore import frame


def check(data: bytes) -> None:
    """The first byte says where the stream is cut; the rest is the stream."""
    step, stream = 1 + (data[0] if data else 0), data[1:]
    whole, refused = _decoded([stream])
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    split, refused_split = _decoded(pieces)
    assert refused == refused_split, "a split of the stream changes the verdict"
    # A refused feed gives nothing, so the split one may have given frames that came before.
    assert whole == split or refused, "a split of the stream changes the frames"
    again, refused_again = _decoded([b"".join(frame.encode(*one) for one in split)])
    assert (again, refused_again) == (split, False), "encoded again, the frames are others"
    before, _ = _decoded(pieces[: len(pieces) // 2])
    assert split[: len(before)] == before, "what followed has changed a whole frame"
    _prefaces(stream)


def _decoded(pieces: list[bytes]) -> tuple[list[frame.Frame], bool]:
    decoder = frame.FrameDecoder()
    frames: list[frame.Frame] = []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
            assert decoder.held_bytes <= frame.MESSAGE_BYTES_MAX + frame.FRAME_BYTES_MAX
    except frame.FrameError:
        return frames, True
    return frames, False


def _prefaces(data: bytes) -> None:
    for parse, size in (
        (frame.parse_client_preface, frame.CLIENT_PREFACE_BYTES),
        (frame.parse_server_preface, frame.SERVER_PREFACE_BYTES),
    ):
        try:
            version = parse(data[:size])
        except frame.FrameError:
            continue
        assert version in (0, frame.VERSION)


def seeds() -> list[bytes]:
    small = frame.encode(frame.REQUEST, 7, b"hello") + frame.encode(frame.EVENT, 0, b"")
    chunked = frame.encode(frame.RESPONSE, 9, bytes(3 * frame.BODY_BYTES_MAX))
    prefaces = [frame.client_preface(), frame.server_preface(frame.VERSION)]
    return [bytes([3]) + small, bytes([255]) + chunked + small, *(b"\0" + p for p in prefaces)]


TARGET = Target("frames", check, seeds, words=[frame.MAGIC, b"\1\1", b"\3\0"], bytes_max=8192)
