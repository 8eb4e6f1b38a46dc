"""What one device encrypts and decrypts: keys, sessions, and whom it trusts (docs/encryption.md).

The algorithms are vodozemac's, Matrix's Olm and Megolm. Of a conversation a device has one Megolm
session at a time, which encrypts what it says there; the session's key goes to each other device by
Olm, a double ratchet for each pair of devices, within the messages themselves until one of them is
known to be stored. So a message is encrypted once, its bytes are the same wherever it is offered,
and a device that gets messages in another order than they were sent in reads them all.

What must outlive the process are rows, by name, whose values never hold a secret in plain text: the
shell writes a row that has changed in one transaction with the message that changed it. It may
write a later value than the one it was told of, never an earlier one.

No I/O and no clock; the library draws random numbers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from imcore.limits import CONTENT_BYTES_MAX, SHARES_MAX
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey, direct_members, valid_id
from services.sdk.errors import SdkError, SendFailed

KEY_BYTES = 32
DIRECT_MESSAGES = 20  # of one session; then there is a new one
GROUP_MESSAGES = 100
SESSION_MS = 24 * 3_600_000
PREKEY_MS = 7 * 24 * 3_600_000  # the one before is kept for as long again
_OLM_SESSIONS = 5  # of another device: both sides may begin one at the same time
_OVERHEAD = 1_024  # bytes of a Sealed, shares and content aside
_SHARE_OVERHEAD = 224  # of a share, beside what it says and names

NO_KEY = "no_key"  # it was sent before this device was known to its sender, or the key is to come
NO_ENCRYPTION = "no_encryption"  # this client runs without
MALFORMED = "malformed"
DAMAGED = "damaged"
FORGED = "forged"  # encrypted by another device, or for another conversation or message
REPLAYED = "replayed"  # the same ciphertext stood under another name before
IDENTITY_CHANGED = "identity_changed"  # its sender has other keys than before: ``Client.trust``


class Opened(NamedTuple):
    """``why`` is empty, or one of the reasons above for which nothing can be shown."""

    content: bytes
    refs: bytes
    why: str


class KnownDevice(NamedTuple):
    """A device whose keys were seen. ``changed_to``: the fingerprint of other keys that it, or a
    server, has come up with since; empty: none. ``verified``: ``Client.trust`` was called."""

    uid: str
    device: str
    fingerprint: str
    verified: bool
    changed_to: str


@dataclass(slots=True)
class Peer:
    """Another device. Keys are of the library's base64."""

    identity: str
    signing: str
    prekey: str
    signature: str
    sessions: list[str]  # pickled, the one that was used last first
    verified: bool = False
    changed: list[str] | None = None  # other keys and their signature, not trusted


@dataclass(slots=True)
class Outbound:
    """The own session of a conversation."""

    id: str
    pickle: str
    made_ms: int
    count: int = 0
    shared: dict[str, str] | None = None  # identities of the devices that have its key, by name
    offered: dict[str, str] | None = None  # of those that a message was to bring it, stored or not


def vodozemac() -> ModuleType:
    """Raises SdkError where it is not installed."""
    try:
        import vodozemac as found
    except ModuleNotFoundError as error:
        raise SdkError("encryption needs vodozemac: pip install 'imctl[encryption]'") from error
    return found


def fingerprint(uid: str, device: str, identity: str, signing: str) -> str:
    """For people to compare: 160 bits, in groups of four."""
    digest = hashlib.sha256(f"{uid}\0{device}\0{identity}\0{signing}".encode()).hexdigest()
    return " ".join(digest[at : at + 4] for at in range(0, 40, 4))


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


def signed_bytes(keys: pb.DeviceKeys) -> bytes:
    named = f"im device keys 1\0{keys.uid}\0{keys.device}\0".encode()
    return named + keys.identity + keys.signing + keys.prekey


def _name(uid: str, device: str) -> str:
    return f"{uid}/{device}"


class Crypt:
    """``rows``: what was stored. ``changed(name)``: this row is to be stored. ``met(uid, device,
    fingerprint, changed)``: keys of a device are seen for the first time, or others than before.
    ``key_came(conversation)``: what could not be read may be readable now (empty: anywhere).
    Raises SdkError: no library, or the rows are not of this key or device."""

    def __init__(
        self,
        uid: str,
        device: str,
        key: bytes,
        rows: Mapping[str, bytes],
        changed: Callable[[str], None],
        met: Callable[[str, str, str, bool], None],
        key_came: Callable[[str], None],
    ) -> None:
        if len(key) != KEY_BYTES:
            raise SdkError(f"the encryption key has {KEY_BYTES} bytes")
        self._lib: Any = vodozemac()
        self.uid, self._device, self._key = uid, device, key
        self._rows = dict(rows)
        self._changed, self._met, self._key_came = changed, met, key_came
        self._inbound: dict[str, Any] = {}
        self._peers: dict[str, Peer] = {}
        # Which message each ciphertext was: by session and index.
        self._seen: dict[tuple[str, int], tuple[ClientKey, bytes]] = {}
        self._account, self._prekey, self._prekey_ms = self._open_account()

    def _open_account(self) -> tuple[Any, str, int]:
        stored = self._rows.get("account")
        if stored is None:
            return self._lib.Account(), "", 0
        row = json.loads(stored)
        if (row["uid"], row["device"]) != (self.uid, self._device):
            raise SdkError("the outbox belongs to another device: its keys are not this one's")
        try:
            account = self._lib.Account.from_pickle(row["pickle"], self._key)
        except ValueError as error:
            raise SdkError(f"the encryption key is not that of this outbox: {error}") from error
        return account, row["prekey"], row["prekey_ms"]

    def row(self, name: str) -> bytes:
        return self._rows[name]

    def _put(self, name: str, row: object) -> None:
        self._rows[name] = json.dumps(row, separators=(",", ":")).encode()
        self._changed(name)

    # --------------------------------------------------------------------------- own keys

    def own_keys(self, now_ms: int) -> pb.DeviceKeys:
        """To be published once the row is stored; with a new prekey when it is time for one."""
        if not self._prekey or now_ms - self._prekey_ms >= PREKEY_MS:
            self._account.generate_fallback_key()
            [key] = self._account.fallback_key.values()
            self._account.mark_keys_as_published()
            self._prekey, self._prekey_ms = key.to_base64(), now_ms
            self._put(
                "account",
                {
                    "uid": self.uid,
                    "device": self._device,
                    "pickle": self._account.pickle(self._key),
                    "prekey": self._prekey,
                    "prekey_ms": now_ms,
                },
            )
        return self._signed()

    def _signed(self) -> pb.DeviceKeys:
        keys = pb.DeviceKeys(uid=self.uid, device=self._device, prekey=_raw(self._prekey))
        keys.identity = _raw(self._account.curve25519_key.to_base64())
        keys.signing = _raw(self._account.ed25519_key.to_base64())
        keys.signature = _raw(self._account.sign(signed_bytes(keys)).to_base64())
        return keys

    def own_fingerprint(self) -> str:
        account = self._account
        identity, signing = account.curve25519_key.to_base64(), account.ed25519_key.to_base64()
        return fingerprint(self.uid, self._device, identity, signing)

    # -------------------------------------------------------------------------- whom to trust

    def _peer(self, name: str) -> Peer | None:
        peer = self._peers.get(name)
        if peer is None and (stored := self._rows.get(f"peer/{name}")) is not None:
            peer = self._peers[name] = Peer(**json.loads(stored))
        return peer

    def _put_peer(self, name: str, peer: Peer) -> None:
        self._peers[name] = peer
        self._put(f"peer/{name}", {field: getattr(peer, field) for field in Peer.__slots__})

    def learn(self, keys: pb.DeviceKeys) -> bool:
        """Trust on first use. Whether this is a device to encrypt for, or to believe: False for
        what is not signed by itself, and for other keys than it had before."""
        if not valid_id(keys.uid) or not valid_id(keys.device):
            return False
        fields = (keys.identity, keys.signing, keys.prekey, keys.signature)
        given = [_base64(field) for field in fields]
        name = _name(keys.uid, keys.device)
        peer = self._peer(name)
        if peer is not None and [peer.identity, peer.signing, peer.prekey, peer.signature] == given:
            return True  # nearly always
        try:
            signing = self._lib.Ed25519PublicKey.from_base64(given[1])
            signature = self._lib.Ed25519Signature.from_base64(given[3])
            signing.verify_signature(signed_bytes(keys), signature)
        except ValueError:
            return False
        seen = fingerprint(keys.uid, keys.device, given[0], given[1])
        if peer is None:
            self._put_peer(name, Peer(given[0], given[1], given[2], given[3], []))
            self._met(keys.uid, keys.device, seen, False)
        elif (peer.identity, peer.signing) != (given[0], given[1]):
            if peer.changed is None or peer.changed[:2] != given[:2]:
                self._put_peer(name, Peer(**self._fields(peer) | {"changed": given}))
                self._met(keys.uid, keys.device, seen, True)
            return False
        elif peer.prekey != given[2]:
            self._put_peer(
                name, Peer(**self._fields(peer) | {"prekey": given[2], "signature": given[3]})
            )
        return True

    @staticmethod
    def _fields(peer: Peer) -> dict[str, Any]:
        return {field: getattr(peer, field) for field in Peer.__slots__}

    def known(self, uid: str) -> tuple[KnownDevice, ...]:
        """The devices of a user of which keys were seen, by name."""
        found = []
        prefix = f"peer/{uid}/"
        for row in sorted(name for name in self._rows if name.startswith(prefix)):
            device = row[len(prefix) :]
            peer = self._peer(_name(uid, device))
            assert peer is not None
            shown = fingerprint(uid, device, peer.identity, peer.signing)
            other = ""
            if peer.changed is not None:
                other = fingerprint(uid, device, peer.changed[0], peer.changed[1])
            found.append(KnownDevice(uid, device, shown, peer.verified, other))
        return tuple(found)

    def trust(self, uid: str, device: str, shown: str) -> None:
        """People have compared it. Raises KeyError: these are not the keys of that device, nor
        those that it changed to."""
        name = _name(uid, device)
        peer = self._peer(name)
        if peer is None:
            raise KeyError(f"no keys of {name} were seen")
        if fingerprint(uid, device, peer.identity, peer.signing) == shown:
            self._put_peer(name, Peer(**self._fields(peer) | {"verified": True}))
        elif peer.changed and fingerprint(uid, device, peer.changed[0], peer.changed[1]) == shown:
            identity, signing, prekey, signature = peer.changed
            self._put_peer(name, Peer(identity, signing, prekey, signature, [], verified=True))
            self._key_came("")
        else:
            raise KeyError(f"{name} has other keys than these")

    # ------------------------------------------------------------------------- encrypting

    def encrypts(self, conversation: str) -> bool:
        """Whether it is known to be encrypted, which is for good."""
        return f"on/{conversation}" in self._rows

    def switched_on(self, conversation: str) -> None:
        if not self.encrypts(conversation):
            self._put(f"on/{conversation}", True)

    def last_devices(self, conversation: str) -> list[pb.DeviceKeys] | None:
        """Whom this device has encrypted for there, as far as it remembers; None: for nobody."""
        out = self._outbound(conversation)
        reached = (out.offered or {}) | (out.shared or {}) if out is not None else {}
        if not reached:
            return None
        found = []
        for name in reached:
            peer, (uid, device) = self._peer(name), name.split("/")
            if peer is not None:
                found.append(
                    pb.DeviceKeys(
                        uid=uid, device=device, identity=_raw(peer.identity),
                        signing=_raw(peer.signing), prekey=_raw(peer.prekey),
                        signature=_raw(peer.signature),
                    )
                )  # fmt: skip
        return found

    def recipients(
        self, conversation: str, devices: Iterable[pb.DeviceKeys]
    ) -> list[pb.DeviceKeys]:
        """Those of the given devices to encrypt for: all that are trusted, but this one. Who is in
        a direct conversation its name tells, whatever a server says."""
        members, own = direct_members(conversation), (self.uid, self._device)
        named = [each for each in devices if members is None or each.uid in members]
        return [each for each in named if (each.uid, each.device) != own and self.learn(each)]

    def _outbound(self, conversation: str) -> Outbound | None:
        stored = self._rows.get(f"out/{conversation}")
        return None if stored is None else Outbound(**json.loads(stored))

    def seal(
        self, conversation: str, said: pb.Said, recipients: Sequence[pb.DeviceKeys], now_ms: int
    ) -> bytes:
        """A Sealed for these devices. A session whose key somebody has who is none of them (any
        more) is not used again. Raises SendFailed for what does not fit; nothing has changed then.
        The rows that it changed must be stored before anybody is given it."""
        wanted = {_name(keys.uid, keys.device): keys for keys in recipients}
        identities = {name: _base64(keys.identity) for name, keys in wanted.items()}
        out = self._outbound(conversation)
        session = None
        if out is not None and self._usable(out, conversation, identities, now_ms):
            session = self._lib.GroupSession.from_pickle(out.pickle, self._key)
        fresh = out is None or session is None
        if fresh:
            session = self._lib.GroupSession()
            out = Outbound(session.session_id, "", now_ms)
        assert out is not None and session is not None
        have = out.shared or {}
        lacking = [keys for name, keys in wanted.items() if name not in have]
        key = _raw(session.session_key.to_base64())
        shares = [self._shared_key(conversation, key, keys) for keys in lacking]
        self._check_size(said, shares)
        if fresh:
            inbound = self._lib.InboundGroupSession(session.session_key)
            self._put_inbound(conversation, self.uid, self._device, inbound)
        sealed = pb.Sealed(session=session.session_id)
        for keys, shared in zip(lacking, shares, strict=True):
            self._share(sealed, keys, shared)
        if sealed.shares:
            sealed.sender.CopyFrom(self._signed())
        sealed.body = session.encrypt(said.SerializeToString()).to_bytes()
        out.pickle, out.count, out.shared = session.pickle(self._key), out.count + 1, have
        brought = [_name(share.uid, share.device) for share in sealed.shares]
        out.offered = (out.offered or {}) | {name: identities[name] for name in brought}
        self._put_outbound(conversation, out)
        return sealed.SerializeToString()

    def _put_outbound(self, conversation: str, out: Outbound) -> None:
        row = {field: getattr(out, field) for field in Outbound.__slots__}
        self._put(f"out/{conversation}", row)

    @staticmethod
    def _usable(
        out: Outbound, conversation: str, identities: Mapping[str, str], now_ms: int
    ) -> bool:
        limit = DIRECT_MESSAGES if direct_members(conversation) else GROUP_MESSAGES
        if out.count >= limit or not 0 <= now_ms - out.made_ms < SESSION_MS:
            return False
        # Whoever may have the key, since a message whose outcome is not known may have brought it.
        reached = (out.offered or {}) | (out.shared or {})
        return all(identities.get(name) == identity for name, identity in reached.items())

    def _shared_key(self, conversation: str, key: bytes, to: pb.DeviceKeys) -> pb.SharedKey:
        return pb.SharedKey(
            conversation=conversation, session_key=key, uid=self.uid, device=self._device,
            signing=_raw(self._account.ed25519_key.to_base64()),
            to_uid=to.uid, to_device=to.device, to_signing=to.signing,
        )  # fmt: skip

    @staticmethod
    def _check_size(said: pb.Said, shares: Sequence[pb.SharedKey]) -> None:
        """Before a ratchet has moved."""
        if len(shares) > SHARES_MAX:
            message = f"{len(shares)} devices need the key; a message brings it to {SHARES_MAX}"
            raise SendFailed("too_large", message)
        size = said.ByteSize() + _OVERHEAD
        for share in shares:
            names = len(share.to_uid) + len(share.to_device)
            size += share.ByteSize() + names + _SHARE_OVERHEAD
        if size > CONTENT_BYTES_MAX:
            raise SendFailed("too_large", f"encrypted, the message would have {size} bytes")

    def _share(self, sealed: pb.Sealed, to: pb.DeviceKeys, shared: pb.SharedKey) -> None:
        name = _name(to.uid, to.device)
        peer = self._peer(name)
        assert peer is not None  # ``recipients`` has learned it
        try:
            if peer.sessions:
                session = self._lib.Session.from_pickle(peer.sessions[0], self._key)
            else:
                session = self._account.create_outbound_session(
                    self._lib.Curve25519PublicKey.from_base64(peer.identity),
                    self._lib.Curve25519PublicKey.from_base64(peer.prekey),
                )
        except ValueError:
            return  # keys that lead nowhere: its own fault, and nobody else's
        kind, ciphertext = session.encrypt(shared.SerializeToString()).to_parts()
        peer.sessions[:1] = [session.pickle(self._key)]
        self._put_peer(name, peer)
        sealed.shares.add(uid=to.uid, device=to.device, type=kind, ciphertext=ciphertext)

    def confirm(self, conversation: str, content: bytes) -> None:
        """A Sealed of this device is stored: whom it brings the key needs no other share of it."""
        sealed, out = pb.Sealed.FromString(content), self._outbound(conversation)
        if out is None or out.id != sealed.session or not sealed.shares:
            return
        have = dict(out.shared or {})
        for share in sealed.shares:
            name = _name(share.uid, share.device)
            if (peer := self._peer(name)) is not None:
                have[name] = peer.identity
        if have != out.shared:
            out.shared = have
            self._put_outbound(conversation, out)

    # ------------------------------------------------------------------------- decrypting

    def open(self, key: ClientKey, content: bytes, order: pb.Order | None = None) -> Opened:
        """The content of a message, or (``order``: its) of an edit of it. Never raises for what
        came from elsewhere."""
        sender = (key.uid, key.device if order is None else order.device)
        try:
            sealed = pb.Sealed.FromString(content)
            message = self._lib.MegolmMessage.from_bytes(sealed.body)
            index = message.message_index()
        except (DecodeError, ValueError):
            return Opened(b"", b"", MALFORMED)
        name = _inbound_name(key.conversation, *sender, sealed.session)
        session, why = self._session(name), NO_KEY
        if session is None or index < session.first_known_index:
            why = self._take_share(key.conversation, sender, sealed)
            session = self._session(name)
        if session is None or index < session.first_known_index:
            return Opened(b"", b"", why)
        try:
            said = pb.Said.FromString(session.decrypt(message).plaintext)
        except (DecodeError, ValueError):
            return Opened(b"", b"", DAMAGED)
        if not _is_said_here(said, key, order):
            return Opened(b"", b"", FORGED)
        which = (key, order.SerializeToString(deterministic=True) if order is not None else b"")
        if self._seen.setdefault((name, index), which) != which:
            return Opened(b"", b"", REPLAYED)
        return Opened(said.content, said.refs, "")

    def _session(self, name: str) -> Any:
        """None: there is none."""
        session = self._inbound.get(name)
        if session is None and (stored := self._rows.get(name)) is not None:
            session = self._lib.InboundGroupSession.from_pickle(json.loads(stored), self._key)
            self._inbound[name] = session
        return session

    def _put_inbound(self, conversation: str, uid: str, device: str, session: Any) -> None:
        name = _inbound_name(conversation, uid, device, session.session_id)
        self._inbound[name] = session
        self._put(name, session.pickle(self._key))

    def _take_share(self, conversation: str, sender: tuple[str, str], sealed: pb.Sealed) -> str:
        """The session's key, if it is brought along for this device. Why not, or empty."""
        own = (self.uid, self._device)
        share = next((each for each in sealed.shares if (each.uid, each.device) == own), None)
        if share is None:
            return NO_KEY
        keys = sealed.sender
        if sender == own or (keys.uid, keys.device) != sender:
            return FORGED
        if not self.learn(keys):
            peer = self._peer(_name(*sender))
            return FORGED if peer is None or peer.changed is None else IDENTITY_CHANGED
        try:
            plain = self._open_share(_name(*sender), share)
            shared = pb.SharedKey.FromString(plain)
            key = self._lib.SessionKey(_base64(shared.session_key))
            session = self._lib.InboundGroupSession(key)
        except (DecodeError, ValueError):
            return DAMAGED
        signing = _raw(self._account.ed25519_key.to_base64())
        if (
            shared.conversation != conversation
            or (shared.uid, shared.device) != sender
            or shared.signing != keys.signing
            or (shared.to_uid, shared.to_device, shared.to_signing) != (*own, signing)
            or session.session_id != sealed.session
        ):
            return FORGED
        held = self._session(_inbound_name(conversation, *sender, sealed.session))
        if held is None or session.first_known_index < held.first_known_index:
            self._put_inbound(conversation, *sender, session)
            self._key_came(conversation)
        return ""

    def _open_share(self, name: str, share: pb.Share) -> bytes:
        """By a session with that device, or a new one that it has begun. Raises ValueError."""
        peer = self._peer(name)
        assert peer is not None
        lib = self._lib

        def message() -> Any:
            return lib.AnyOlmMessage.from_parts(share.type, share.ciphertext)

        begun = message().to_pre_key()
        for at, pickled in enumerate(peer.sessions):
            session = lib.Session.from_pickle(pickled, self._key)
            if begun is not None and not session.session_matches(begun):
                continue
            try:
                plain: bytes = session.decrypt(message())
            except ValueError:
                continue
            del peer.sessions[at]
            break
        else:
            if begun is None:
                raise ValueError("no session of that device fits")
            identity = lib.Curve25519PublicKey.from_base64(peer.identity)
            session, plain = self._account.create_inbound_session(identity, begun)
        peer.sessions.insert(0, session.pickle(self._key))
        del peer.sessions[_OLM_SESSIONS:]
        self._put_peer(name, peer)
        return plain


def _inbound_name(conversation: str, uid: str, device: str, session: str) -> str:
    return f"in/{uid}/{device}/{conversation}/{session}"


def _is_said_here(said: pb.Said, key: ClientKey, order: pb.Order | None) -> bool:
    if said.conversation != key.conversation:
        return False
    if order is None:
        return not said.HasField("edits")
    named = said.edits
    return said.order == order and key == ClientKey(
        named.uid, named.device, named.outbox, named.conversation, named.cid
    )
