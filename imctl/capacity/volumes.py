"""Bytes: on WAN links, to clients, on disks."""

from __future__ import annotations

from imctl.capacity.figures import Figures
from imctl.capacity.inputs import Workload
from imctl.capacity.result import Line


class Volumes:
    def __init__(self, workload: Workload, figures: Figures) -> None:
        self._w, self._f = workload, figures
        self._normal, self._worst = 1 / workload.idcs, 1 / workload.surviving

    def record(self) -> float:
        return self._w.message_bytes + self._f["record_bytes"]

    def network(self) -> list[Line]:
        w, f = self._w, self._f
        a_message = self.record() * f["wan_overhead"] * 8
        normal = w.peak * self._normal * a_message
        # With one survivor no link is in use.
        loaded = w.peak * self._worst * a_message if w.surviving > 1 else normal
        link = loaded / w.headroom
        wan = self._f.assumed(("wan_overhead",))
        frame_bytes = w.message_bytes + f["push_bytes"] + f["packet_bytes"]
        ack_bytes = f["push_bytes"] + f["packet_bytes"]
        beats = w.connections / w.heartbeat_s * f["packet_bytes"]
        out = (w.peak * (w.pushes * frame_bytes + ack_bytes) + beats) * self._worst * 8
        catch_up = []
        if link > normal:
            missed = w.peak * self._worst * a_message * 3600
            catch_up = [
                Line.of("catch_up", "Catch-up time after 1 h away",
                        missed / (link - normal), "s",
                        "missed bytes of a survivor / (required bandwidth - traffic at peak)", wan)
            ]  # fmt: skip
        return [
            Line.of("links", "WAN links (bidirectional)", w.idcs * (w.idcs - 1) / 2, "",
                    "idcs x (idcs - 1) / 2"),
            Line.of("wan_peak", "Link traffic at peak, each way", normal, "bit/s",
                    "messages/s of one IDC x (message_bytes + record_bytes) x wan_overhead", wan),
            Line.of("wan_after_loss", "Link traffic after a loss, each way", loaded, "bit/s",
                    "the same, with the messages/s of a surviving IDC", wan),
            Line.of("wan_link", "Required link bandwidth, each way", link, "bit/s",
                    "link traffic after a loss / headroom", wan),
            Line.of("client_out", "Traffic to clients after a loss, per IDC", out, "bit/s",
                    "(pushes + acks + heartbeats) x their bytes",
                    self._f.assumed(("packet_bytes",))),
            *catch_up,
        ]  # fmt: skip

    def kv_a_day(self) -> float:
        """One copy, of one IDC."""
        return self._w.messages_a_day * self.rows()

    def rows(self) -> float:
        """What a message takes in the KV, bytes."""
        return self._w.message_bytes + self._f["row_bytes"] + self._f["shadow_bytes"]

    def kv_bytes(self) -> float:
        """On the disks of one IDC, for the whole retention."""
        w = self._w
        kept = self.kv_a_day() * w.retention_days
        return kept * w.replication_factor * self._f["store_amplification"]

    def log_a_day(self) -> float:
        """One copy, of one IDC: its own log and its copies of all others."""
        return self._w.messages_a_day * self.record()

    def log_bytes(self) -> float:
        """On the disks of one IDC."""
        return self.log_a_day() * self._w.log_hours / 24 * self._w.replication_factor

    def storage(self) -> list[Line]:
        w = self._w
        amplified = self._f.assumed(("store_amplification",))
        a_day = self.kv_a_day() * self._f["store_amplification"] + self.log_a_day()
        return [
            Line.of("kv_a_day", "KV per day, one copy", self.kv_a_day(), "B",
                    "messages per day x (message_bytes + row_bytes + shadow_bytes)"),
            Line.of("log_a_day", "Logs per day, one copy", self.log_a_day(), "B",
                    "messages per day x (message_bytes + record_bytes)"),
            Line.of("written_a_day", "Written per day, all copies and IDCs",
                    a_day * w.replication_factor * w.idcs, "B",
                    "(KV x store_amplification + logs) x replication x idcs", amplified),
            Line.of("kv_kept", f"KV for {w.retention_days:g} days, one IDC", self.kv_bytes(),
                    "B", "KV per day x retention_days x replication x store_amplification",
                    amplified),
            Line.of("log_kept", f"Logs for {w.log_hours:g} h, one IDC", self.log_bytes(), "B",
                    "logs per day x log_hours / 24 x replication"),
            Line.of("disk", "Total on disk, all IDCs", self.disk(), "B",
                    "(KV + logs) x idcs", amplified),
        ]  # fmt: skip

    def disk(self) -> float:
        return (self.kv_bytes() + self.log_bytes()) * self._w.idcs
