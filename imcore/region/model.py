"""Typed models of the region file, `apiVersion: imctl.dev/v1alpha1`.

Each field says unit, default and reason; the models become the CRD schemas.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import ip_network
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

# An API server reckons what a rule between fields may cost from `maxLength`; it reads no patterns.
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$"),
    Field(json_schema_extra={"maxLength": 31}),
]
HostPort = Annotated[
    str,
    StringConstraints(pattern=r"^[^:\s]+:\d{1,5}$"),
    Field(json_schema_extra={"maxLength": 260}),
]
Country = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
# A process that reads it may run in any folder.
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/.+$")]
KeyPrefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{1,200}$")]
# Kafka allows 249 characters for a whole topic, and no "_" beside "." without collisions.
TopicPrefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$")]
S3Endpoint = Annotated[
    str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.-]{1,253}(:\d{1,5})?$")
]
WebOrigin = Annotated[str, StringConstraints(pattern=r"^https?://[a-z0-9.-]{1,253}(:\d{1,5})?$")]
Bucket = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
S3Region = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")]

Importable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z0-9_]+$")]


def no_boolean(value: Any) -> Any:
    """YAML reads `yes` and `on` as true, which pydantic takes for 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "a number")
    return value


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: Any, field: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[field.field_name or ""].annotation)
        return value if bool in kinds or not {int, float} & set(kinds) else no_boolean(value)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """What a field may be."""
    return get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


class Metadata(Model):
    """Name and labels of the whole deployment."""

    name: Name = Field(description="of the region")
    labels: dict[str, str] = Field(default_factory=dict, description="shown only")


class IdcPlace(Model):
    """Where the IDC really is; shown, and the reason for the link delays."""

    city: str = Field(description="its name, as people say it")
    country: Country = Field(description="its two letters, such as DE")
    latitude: float = Field(ge=-90, le=90, description="degrees, north positive")
    longitude: float = Field(ge=-180, le=180, description="degrees, east positive")


class Endpoints(Model):
    """Where the IDC's listeners are, host:port."""

    gateway: HostPort = Field(description="first client listener; gateway n listens n ports above")
    ipconf: HostPort = Field(
        description="HTTPS API that tells clients where to connect; the nth of `ipconfs` listens "
        "n - 1 ports above"
    )
    peer: HostPort = Field(description="gRPC for other IDCs and for imctl, mutual TLS")
    metrics: HostPort | None = Field(
        default=None,
        description="HTTPS for probes and Prometheus (docs/metrics.md); default: nothing listens "
        "and nothing is measured",
    )
    admin: HostPort | None = Field(
        default=None,
        description="HTTPS for the operator's own servers (docs/admin-api.md), on a host of the "
        "other endpoints; default: nothing listens",
    )
    media: HostPort | None = Field(
        default=None,
        description="HTTPS for files (docs/media.md), on a host of the other endpoints; default: "
        "behind ipconf's",
    )


class Etcd(Model):
    """An etcd that runs already; secrets stand in files, never here."""

    endpoints: list[HostPort] = Field(min_length=1, description="tried in this order")
    ca_file: AbsolutePath | None = Field(default=None, description="PEM; without it no TLS")
    cert_file: AbsolutePath | None = Field(default=None, description="PEM, shown to etcd")
    key_file: AbsolutePath | None = Field(default=None, description="PEM, of that certificate")
    username: str | None = Field(default=None, description="of etcd's own users")
    password_file: AbsolutePath | None = Field(default=None, description="its first line")
    prefix: KeyPrefix | None = Field(
        default=None, description="of all keys; default imctl/REGION/IDC, so that one can be shared"
    )


class Tikv(Model):
    """A TiKV cluster that runs already, found by its PD. The client has no TLS: on a network that
    is not trusted, PD and the stores belong behind a tunnel or a mesh."""

    pd: list[HostPort] = Field(min_length=1, description="all members of PD")
    prefix: KeyPrefix | None = Field(
        default=None, description="of all keys; default imctl/REGION/IDC, so that one can be shared"
    )


class Kafka(Model):
    """A Kafka cluster that runs already, inside the IDC; secrets stand in files, never here."""

    brokers: list[HostPort] = Field(min_length=1, description="asked first for all the others")
    ca_file: AbsolutePath | None = Field(default=None, description="PEM; without it no TLS")
    cert_file: AbsolutePath | None = Field(default=None, description="PEM, shown to the brokers")
    key_file: AbsolutePath | None = Field(default=None, description="PEM, of that certificate")
    username: str | None = Field(default=None, description="SASL SCRAM-SHA-512, over TLS only")
    password_file: AbsolutePath | None = Field(default=None, description="its first line")
    topic_prefix: TopicPrefix = Field(default="im", description="PREFIX.log.N and so on")
    replication_factor: int = Field(default=3, ge=1, le=32_767, description="of every topic")
    min_insync_replicas: int = Field(default=2, ge=1, description="that must have an acked record")
    durability: Literal["replicated", "flush"] = Field(
        default="replicated",
        description="an acked record is in the memory of the in-sync replicas, or on their disks",
    )


class S3(Model):
    """A bucket of a store that speaks S3; secrets stand in a file, never here."""

    endpoint: S3Endpoint = Field(
        description="https://HOST:PORT; http: the files are readable there"
    )
    bucket: Bucket = Field(description="it is there already; named in the path of each request")
    region: S3Region = Field(default="us-east-1", description="that requests are signed for")
    credentials_file: AbsolutePath = Field(
        description="as AWS's tools have it: `aws_access_key_id` and `aws_secret_access_key` below "
        "`[default]`",
    )
    ca_file: AbsolutePath | None = Field(
        default=None, description="PEM; default: the CAs that the machine trusts"
    )
    prefix: KeyPrefix | None = Field(
        default=None, description="of all keys; default imctl/REGION/IDC, so that one can be shared"
    )


class MirrorMaker2(Model):
    """MirrorMaker 2 brings the other IDCs' logs into this IDC's Kafka."""

    remote_brokers: dict[Name, list[HostPort]] = Field(
        default_factory=dict,
        description="where it reaches the brokers of another IDC; default: that one's `brokers`",
    )


class Choice(Model):
    """`embedded`, or the one engine that it names, such as `{etcd: {...}}`."""

    needs: ClassVar[str]  # what a named engine cannot do without

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if value == "embedded":
            return {}
        nothing = isinstance(value, dict) and (not value or None in value.values())
        if nothing or not isinstance(value, dict | Choice):
            (engine,) = cls.model_fields
            expected = f"`embedded`, or `{engine}:` with its {cls.needs}"
            raise PydanticCustomError("literal_error", "{expected}", {"expected": expected})
        return value


class KvEngine(Choice):
    """`embedded`, or `{tikv: {...}}`."""

    needs = "`pd:`"
    tikv: Tikv | None = Field(default=None, description="KV on TiKV; unset: embedded")


class LogEngine(Choice):
    """`embedded`, or `{kafka: {...}}`."""

    needs = "`brokers:`"
    kafka: Kafka | None = Field(default=None, description="log on Kafka; unset: embedded")


class MirrorEngine(Choice):
    """`embedded`, or `{mirrormaker2: {}}`."""

    needs = "`remote_brokers:` or `{}`"
    mirrormaker2: MirrorMaker2 | None = Field(
        default=None, description="mirror by MirrorMaker 2; unset: embedded"
    )


class RegistryEngine(Choice):
    """`embedded`, or `{etcd: {...}}`."""

    needs = "`endpoints:`"
    etcd: Etcd | None = Field(default=None, description="registry on etcd; unset: embedded")


class BlobEngine(Choice):
    """`embedded`, or `{s3: {...}}`."""

    needs = "`endpoint:`, `bucket:` and `credentials_file:`"
    s3: S3 | None = Field(default=None, description="files in a bucket; unset: embedded")


class Engines(Model):
    """What stands behind each port of an IDC."""

    kv: KvEngine = Field(
        default=KvEngine.model_construct(), description="the fold of all logs; default: embedded"
    )
    log: LogEngine = Field(
        default=LogEngine.model_construct(), description="the op log; default: embedded"
    )
    mirror: MirrorEngine = Field(
        default=MirrorEngine.model_construct(),
        description="what brings the other IDCs' logs; default: embedded",
    )
    registry: RegistryEngine = Field(
        default=RegistryEngine.model_construct(),
        description="leases, votes, the policy; default: embedded",
    )
    blobs: BlobEngine = Field(
        default=BlobEngine.model_construct(),
        description="the files of clients, where the region has `media`; default: embedded",
    )


class Capacity(Model):
    """What the IDC can carry; safety rules compare it with live traffic."""

    sessions: int = Field(default=10_000, gt=0, description="clients that are connected")
    messages_per_s: int = Field(default=2_000, gt=0, description="taken from clients")
    logins_per_s: int = Field(
        default=200, gt=0, description="a planned move hands over no more sessions a second"
    )


class Idc(Model):
    """One data centre."""

    name: Name = Field(description="by which all else names it; fixed")
    place: IdcPlace = Field(description="where it really is")
    endpoints: Endpoints = Field(description="where clients and other IDCs reach it")
    engines: Engines = Field(default=Engines(), description="what stands behind its ports")
    capacity: Capacity = Field(default=Capacity(), description="what it can carry")
    gateways: int = Field(default=1, ge=1, le=64, description="client listeners of its process")
    ipconfs: int = Field(
        default=0,
        ge=0,
        le=16,
        description="ipconf listeners, each a process of its own where roles run apart (`imctl up "
        "--split`); 0: one, in the process of the other roles everywhere",
    )


class Witness(Model):
    """Registry and vote without traffic; the third voter where there are two IDCs."""

    name: Name = Field(default="witness", description="by which its certificate names it")
    peer: HostPort = Field(description="gRPC for the IDCs and for imctl, mutual TLS")
    metrics: HostPort | None = Field(
        default=None,
        description="HTTPS for probes and Prometheus (docs/metrics.md); default: nothing listens",
    )


class Link(Model):
    """One WAN link, as the local target emulates it; delay is one way."""

    between: tuple[Name, Name] = Field(description="two IDCs, or one and the witness")
    delay_ms: float = Field(ge=0, le=2000, description="one way")
    jitter_ms: float = Field(
        default=0, ge=0, allow_inf_nan=False, description="the most that is added to a delay"
    )
    loss: float = Field(default=0, ge=0, le=0.5, description="share of packets, felt as delay")
    rate_mbit: float = Field(
        default=1000, gt=0, allow_inf_nan=False, description="Mbit/s in each direction"
    )


class Match(Model):
    """Longest prefix wins among cidrs; a cidr beats an ASN, an ASN beats a country."""

    countries: list[Country] = Field(default_factory=list, description="two letters each")
    asns: list[Annotated[int, BeforeValidator(no_boolean)]] = Field(
        default_factory=list, description="autonomous systems, by number"
    )
    cidrs: list[str] = Field(default_factory=list, description="networks, such as 192.0.2.0/24")

    @field_validator("cidrs")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for text in value:
            ip_network(text)
        return value


class Shard(Model):
    """Clients that belong together, and the IDCs that they are given."""

    name: Name = Field(description="of the shard")
    match: Match = Field(default=Match(), description="which clients are in it")
    weights: dict[Name, Annotated[FiniteFloat, BeforeValidator(no_boolean)]] = Field(
        max_length=32, description="share of this shard's clients by IDC"
    )
    fallback: list[Name] = Field(
        default_factory=list, max_length=32, description="where they go next, in order"
    )


class Geo(Model):
    """Which clients go where."""

    shards: list[Shard] = Field(max_length=64, description="every client is in one of them")
    default: Name = Field(description="the shard of clients that match none")
    trusted_proxies: list[str] = Field(
        default_factory=list, description="networks whose X-Forwarded-For header is believed"
    )
    database: str | None = Field(
        default=None, description="MaxMind-format file; default: the country table of geoip2fast"
    )


# Longer is no time at all, and a rule that compares two of them has its price by it.
_Time = Annotated[str, Field(json_schema_extra={"maxLength": 40})]


class FreezeWindow(Model):
    """While it lasts no traffic is moved on purpose."""

    start: _Time = Field(description="RFC 3339; no traffic moves from here")
    end: _Time = Field(description="RFC 3339; up to here")


class Safety(Model):
    """Checked by every path that moves traffic."""

    active_idcs_min: int = Field(default=1, ge=1, description="so many stay in service")
    headroom: float = Field(default=0.8, gt=0, le=1, description="survivors' load limit")
    replication_lag_ms_max: int = Field(default=5_000, gt=0, description="for planned moves")
    hold_ms: int = Field(default=3_000, ge=500, description="evidence must hold this long")
    automatic_failover: bool = Field(
        default=True, description="the IDCs declare a lost one failed by their votes"
    )
    evidence_age_ms_max: int = Field(
        default=2_000, gt=0, description="nothing is decided on older evidence"
    )
    anti_flap_ms: int = Field(
        default=60_000,
        ge=0,
        description="an IDC is emptied no sooner after its clients were last moved, there or back: "
        "a drain and its return take less, so one round of them is over; 0: at any time",
    )
    approval: list[Literal["drain", "switchover", "failback"]] = Field(
        default_factory=list,
        description="planned moves that begin only once `imctl op approve` has said so",
    )
    stall_ms: int = Field(
        default=60_000,
        gt=0,
        description="a move whose next step comes no nearer for so long is paused for an operator",
    )
    freeze: list[FreezeWindow] = Field(
        default_factory=list, max_length=32, description="when no traffic is moved on purpose"
    )


class WhenUnreplicated(StrEnum):
    REFUSE = "refuse"
    DEGRADE = "degrade"


class Messages(Model):
    """What is promised of a message, and how large things may be."""

    ack: Literal["stored", "replicated"] = Field(
        default="stored", description="when a sender is told: durable here, or elsewhere too"
    )
    replicas: int = Field(default=1, ge=1, description="other IDCs that must hold it, `replicated`")
    when_unreplicated: WhenUnreplicated = Field(
        default=WhenUnreplicated.DEGRADE,
        description="when no other IDC holds it in time: refuse, or ack and say so",
    )
    replicated_timeout_ms: int = Field(default=2_000, gt=0, description="that time")
    content_bytes_max: int = Field(
        default=16_384,
        gt=0,
        le=98_304,
        description="with as many claims as are taken, it must fit one message of the protocol",
    )
    group_members_max: int = Field(default=10_000, gt=0, description="of any group")
    push_group_members_max: int = Field(default=500, description="larger: read-diffused")


class Limits(Model):
    """What is taken on at most; beyond it an answer says when to ask again (docs/limits.md)."""

    connects_per_s: int = Field(default=500, gt=0, description="at one gateway")
    connections_of_address: int = Field(
        default=4_000,
        gt=0,
        description="at one gateway, of one client address (of IPv6 one /64), but for "
        "`geo.trusted_proxies`",
    )
    lookups_per_s: int = Field(default=1_000, gt=0, description="at one ipconf")
    user_lookups_per_s: int = Field(
        default=5, gt=0, description="of one user's devices at one ipconf"
    )
    address_lookups_per_s: int = Field(
        default=200, gt=0, description="of one address there, which many may share"
    )
    service_requests_per_s: int = Field(
        default=100, gt=0, description="of one of the operator's servers at the admin API of an IDC"
    )
    user_requests_per_s: int = Field(default=400, gt=0, description="of one user's devices, an IDC")
    conversation_deliveries_per_s: int = Field(
        default=20_000, gt=0, description="messages times members, of one conversation, an IDC"
    )
    conversation_in_flight: int = Field(
        default=1_000, gt=0, description="messages of one conversation that are not durable yet"
    )
    group_messages_per_s: int = Field(
        default=100, gt=0, description="of one group that is read-diffused, an IDC"
    )
    group_in_flight: int = Field(
        default=100, gt=0, description="messages of such a group that are not durable yet"
    )
    group_merge_deliveries_per_s: int = Field(
        default=10_000, gt=0, description="of such a group; above it a window is one push"
    )
    group_signal_deliveries_per_s: int = Field(
        default=1_000_000, gt=0, description="of such a group; above it nothing is pushed"
    )
    group_window_ms: int = Field(default=200, ge=10, le=2_000, description="that window")
    group_signal_ms: int = Field(
        default=2_000, ge=100, le=30_000, description="between two signals to pull such groups"
    )
    idc_in_flight: int = Field(default=20_000, gt=0, description="requests that an IDC works on")
    delay_ms: int = Field(
        default=100, gt=0, description="work that waits for longer, and not for a moment: overload"
    )
    fold_delay_ms: int = Field(
        default=2_000, gt=0, description="what is acked waits for longer to be told: overload too"
    )
    risk_rules: Importable | None = Field(
        default=None, description="MODULE:NAME, called for every sign-in and send"
    )


class Media(Model):
    """Files and pictures that clients upload and download (docs/media.md)."""

    bytes_max: int = Field(default=100 << 20, gt=0, le=1 << 40, description="of one file")
    store_bytes_max: int = Field(
        default=20 << 30,
        gt=0,
        description="of all files of an IDC, and what has come of uploads; beyond it none is taken",
    )
    user_bytes_max: int = Field(
        default=1 << 30,
        gt=0,
        description="of one user's files in an IDC, and uploads as announced; no file expires",
    )
    copies_bytes_max: int = Field(
        default=10 << 30,
        ge=0,
        description="of those files that an IDC fetched from others because somebody asked; beyond "
        "it the one goes that was not asked for longest",
    )
    user_uploads: int = Field(default=8, gt=0, description="of one user, under way in an IDC")
    user_bytes_per_s: int = Field(
        default=8 << 20, gt=0, description="of one user, up and down, an IDC; 10 s of it at once"
    )
    transfers: int = Field(default=64, gt=0, description="requests that an IDC works on at once")
    upload_keep_s: int = Field(
        default=86_400, gt=0, description="an upload that is not complete by then is thrown away"
    )
    replicated_timeout_ms: int = Field(
        default=10_000,
        gt=0,
        description="for the copies in other IDCs, where `messages.ack` asks for them",
    )


class GatewayOrder(StrEnum):
    LOAD = "load"
    HASH = "hash"


class Routing(Model):
    """How what is for a user finds the gateways that he is at (docs/routing.md)."""

    gateways: GatewayOrder = Field(
        default=GatewayOrder.LOAD,
        description="of an IDC, to which ipconf sends a client: load, the least loaded; hash, the "
        "one that its uid names, so that all devices of a user are at one",
    )
    broadcast_members: int = Field(
        default=500,
        ge=0,
        description="in a larger conversation all IDCs are told of a message, without looking "
        "where its members are",
    )


class Devices(Model):
    """How many devices of one user, by kind, may have a session at once (docs/features.md). One
    more ends the session of the one of its kind that connected longest ago."""

    phone: int | None = Field(default=None, ge=1, le=100, description="absent: any number")
    desktop: int | None = Field(default=None, ge=1, le=100, description="absent: any number")
    web: int | None = Field(default=None, ge=1, le=100, description="absent: any number")
    tablet: int | None = Field(default=None, ge=1, le=100, description="absent: any number")

    def most(self, kind: str) -> int | None:
        """None: any number, as of devices of which their tokens say nothing."""
        limits = {
            "phone": self.phone, "desktop": self.desktop, "web": self.web, "tablet": self.tablet
        }  # fmt: skip
        return limits.get(kind)


class HookEvent(StrEnum):
    MESSAGE = "message"
    GROUP = "group"
    PRESENCE = "presence"
    OFFLINE_PUSH = "offline_push"


class Webhook(Model):
    """A server that is told what happens, signed and at least once (docs/webhooks.md). The secret
    stands in a file, never here."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,32}$")] = Field(
        description="under which each IDC stores how far it has come"
    )
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")] = Field(
        description="where to; `http://` sends messages in plain text"
    )
    secret_file: AbsolutePath = Field(description="its first line signs; read for each delivery")
    events: list[HookEvent] = Field(min_length=1, max_length=4, description="what it is told")
    content: bool = Field(default=False, description="with the content of messages")
    ca_file: AbsolutePath | None = Field(
        default=None, description="PEM; absent: the machine's usual ones"
    )
    timeout_ms: int = Field(default=5_000, ge=100, le=60_000, description="of one delivery")
    waiting_max: int = Field(
        default=100_000,
        ge=1_000,
        description="records of a partition that wait for it; beyond it the oldest are left out",
    )


class Retention(Model):
    """When logs are cut (docs/retention.md)."""

    enabled: bool = Field(default=True, description="false: logs grow without end")
    log_bytes: int = Field(
        default=1 << 30, gt=0, description="of all logs of an IDC; below this nothing is cut"
    )
    segment_bytes: int = Field(
        default=16 << 20, ge=4_096, description="a log is cut by whole files of this size"
    )
    check_ms: int = Field(default=10_000, ge=100, description="how often it looks")
    snapshots: int = Field(
        default=2, ge=2, description="kept on disk, the one that waits for the other IDCs included"
    )


class Tracing(Model):
    """Messages that are followed from sender to receivers (docs/metrics.md)."""

    per_s: float = Field(
        default=5,
        ge=0,
        allow_inf_nan=False,
        description="messages a second that an IDC follows, of those whose senders ask for it: "
        "each costs as much again as the message; 0: none",
    )


_TIMEOUT_MAX = (
    "what clients report moves the time-out to connect between half of it and this, and that of "
    "heartbeats from what it is to this; 0: neither"
)


class CellularParameters(Model):
    """In place of those above, for clients on cellular networks: over a 2G one a connection takes
    three round trips of 0.6 s and more, over a newer one a tenth of that."""

    heartbeat_timeout_ms: int = Field(
        default=5_000, ge=100, description="without an answer the connection is given up"
    )
    connect_timeout_ms: int = Field(default=4_000, ge=100, description="for one gateway")
    timeout_max_ms: int = Field(default=10_000, ge=0, le=60_000, description=_TIMEOUT_MAX)


class ClientParameters(Model):
    """What ipconf tells the SDK."""

    heartbeat_ms: int = Field(default=5_000, ge=200, description="between two heartbeats")
    heartbeat_timeout_ms: int = Field(
        default=2_000, ge=100, description="without an answer the connection is given up"
    )
    connect_timeout_ms: int = Field(default=1_500, ge=100, description="for one gateway")
    timeout_max_ms: int = Field(default=0, ge=0, le=60_000, description=_TIMEOUT_MAX)
    backoff_base_ms: int = Field(default=100, ge=1, description="first wait between tries")
    backoff_max_ms: int = Field(default=5_000, ge=1, description="longest wait between tries")
    fast_retries: int = Field(default=2, ge=0, description="tries before the first wait")
    idle_pull_ms: int = Field(
        default=15_000, ge=500, description="a client that hears nothing asks after so long"
    )
    grace_ms: int = Field(default=10_000, ge=0, description="a session outlives its connection so")
    background_heartbeat_max_ms: int = Field(
        default=240_000,
        ge=0,
        description="between two heartbeats of an application in the background, at most; it "
        "counts as online for as long after it is lost",
    )
    quic: bool = Field(
        default=False,
        description="gateways take QUIC too, by UDP at the same port, and clients try it first",
    )
    web_origins: list[WebOrigin] = Field(
        default_factory=list,
        max_length=32,
        description="of pages in browsers that may ask ipconf and for files, such as "
        "https://chat.example.com",
    )
    cellular: CellularParameters = Field(
        default=CellularParameters(), description="in place of those above on cellular networks"
    )


class RegionSpec(Model):
    """The desired state of a whole deployment."""

    partitions: int = Field(default=4, ge=1, le=1024, description="equal everywhere and fixed")
    idcs: list[Idc] = Field(min_length=1, max_length=32, description="its data centres")
    witness: Witness | None = Field(
        default=None, description="a third registry and vote; two IDCs cannot do without"
    )
    links: list[Link] = Field(
        default_factory=list, max_length=528, description="what lies between each two of them"
    )
    geo: Geo = Field(description="which clients go where")
    safety: Safety = Field(default=Safety(), description="what no move of traffic may break")
    messages: Messages = Field(default=Messages(), description="promises and limits of messages")
    limits: Limits = Field(default=Limits(), description="what is taken on at most")
    devices: Devices = Field(default=Devices(), description="of one user, at once")
    routing: Routing = Field(default=Routing(), description="of what is for a user")
    webhooks: list[Webhook] = Field(
        default_factory=list, max_length=8, description="servers that are told what happens"
    )
    media: Media | None = Field(
        default=None, description="files and pictures; default: none are taken"
    )
    retention: Retention = Field(default=Retention(), description="when logs are cut")
    client: ClientParameters = Field(
        default=ClientParameters(), description="what ipconf tells the SDK"
    )
    tracing: Tracing = Field(default=Tracing(), description="messages that are followed")


class Region(Model):
    """A whole deployment. Cross-field rules are in ``imcore.region.load`` (they name lines)."""

    apiVersion: Literal["imctl.dev/v1alpha1"]
    kind: Literal["Region"]
    metadata: Metadata
    spec: RegionSpec

    def idc(self, name: str) -> Idc:
        """Raises KeyError."""
        for idc in self.spec.idcs:
            if idc.name == name:
                return idc
        raise KeyError(name)

    def peer(self, name: str) -> str:
        """Where an IDC or the witness is dialled by others, HOST:PORT. Raises KeyError."""
        witness = self.spec.witness
        if witness is not None and witness.name == name:
            return witness.peer
        return self.idc(name).endpoints.peer
