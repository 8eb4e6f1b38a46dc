"""The highest HLC that this client has been told of (rule 10). Pure."""

from __future__ import annotations

from imcore.proto import client_pb2 as pb


class Seen:
    """Goes with every request, so that whatever IDC takes it stamps the op above everything that
    its sender had received. A stamp without its MAC is worth nothing: both are kept."""

    def __init__(self) -> None:
        self.stamp = pb.Stamp()

    def observe(self, message: pb.Response | pb.Event) -> None:
        if message.HasField("stamp"):
            self.merge(message.stamp)

    def merge(self, stamp: pb.Stamp) -> None:
        if stamp.hlc > self.stamp.hlc:
            self.stamp = pb.Stamp(hlc=stamp.hlc, key_id=stamp.key_id, mac=stamp.mac)

    def mark(self, request: pb.Request) -> pb.Request:
        if self.stamp.hlc:
            request.seen.CopyFrom(self.stamp)
        return request
