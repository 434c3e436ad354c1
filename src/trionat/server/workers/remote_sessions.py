"""The sessions of a worker as its parent sees them: as far as accounts, limits and traffic go, and what events say of them."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING

import attrs

from trionat.server.accounts.credential import read_credential
from trionat.server.registry.values import read_key

if TYPE_CHECKING:
    from trionat.protocol.messages import CloseCode
    from trionat.server.accounts.credential import Credential
    from trionat.server.visitors.ports import LeaseKey
    from trionat.server.workers.link import Link, Values
    from trionat.server.workers.parent import Parent
    from trionat.server.workers.shared_limits import SharedLimits


@attrs.define(eq=False)
class RemoteSession:
    """A session of a worker, as far as accounts and traffic go; see `LiveSession`. `relayed` is what was reported last."""

    uid: int
    username: str
    account_id: int
    credential: Credential | None
    user_limits: SharedLimits
    link: Link
    key: LeaseKey
    relayed: int = 0
    held: ExitStack = attrs.field(factory=ExitStack)

    def end(self, code: CloseCode, text: str) -> None:
        """End it, and tell its client why."""
        self.link.post({"what": "end", "uid": self.uid, "code": code, "text": text})


@attrs.define(eq=False)
class RemoteSessions:
    """Those of the worker with that word, whichever process that is. All workers' together are in `Parent.sessions`."""

    parent: Parent
    word: str
    _by_uid: dict[int, RemoteSession] = attrs.field(init=False, factory=lambda: {})
    # What events say of sessions that are up, and of those that are lost and may come back; and the keys of their clients.
    _up: dict[int, Values] = attrs.field(init=False, factory=lambda: {})
    _away: dict[int, Values] = attrs.field(init=False, factory=lambda: {})
    _keys: dict[int, LeaseKey] = attrs.field(init=False, factory=lambda: {})

    def __len__(self) -> int:
        return len(self._by_uid)

    def begin(self, values: Values, link: Link) -> None:
        """One is up, as the worker says over its link."""
        parent, uid = self.parent, values["uid"]
        session = RemoteSession(
            uid=uid,
            username=values["username"],
            account_id=values["account_id"],
            credential=read_credential(values["credential"]),
            user_limits=parent.limits.find(values["username"]),
            link=link,
            key=read_key(values["key"]),
        )
        session.held.enter_context(parent.bans.in_use(values["host"]))
        session.held.enter_context(
            parent.traffic.metered(session.username, lambda: session.relayed)
        )
        session.user_limits.sessions[self.word] += 1
        self._by_uid[uid] = parent.sessions[uid] = session

    def end(self, uid: int) -> None:
        """One has ended, if it was one of these; what it has relayed counts."""
        if (session := self._by_uid.pop(uid, None)) is None:
            return
        del self.parent.sessions[uid]
        session.held.close()
        session.user_limits.sessions -= Counter([self.word])  # none is not kept as 0

    def lose_all(self) -> None:
        """The worker has ended, and all of them with it."""
        self.parent.lost.add(self.word, self._up, self._away, self._keys)
        self._up, self._away, self._keys = {}, {}, {}
        for uid in list(self._by_uid):
            self.end(uid)

    def note_relayed(self, uid: int, relayed: int) -> None:
        """So many bytes one has relayed by now."""
        if (session := self._by_uid.get(uid)) is not None:
            session.relayed = relayed

    def take_event(self, type_: str, data: Values) -> None:
        """Tell what has happened there, and note which sessions are up or lost: when it is killed, nobody there can tell what becomes of them."""
        match type_:
            case "session.up" | "session.back":
                if self._note_up(data):
                    type_ = "session.back"  # from another worker, of which this one knows nothing
            case "session.lost":
                self._up.pop(data["uid"], None)
                self._away[data["uid"]] = data
            case "session.ended":
                for known in (self._up, self._away, self._keys):
                    known.pop(data["uid"], None)
            case _:
                pass
        self.parent.events.publish((type_, data))

    def _note_up(self, data: Values) -> bool:
        """A session is up, which has begun: its client is not lost any more. Tell whether it was lost with a worker that was killed, and has its ports again."""
        uid, lost = data["uid"], self.parent.lost
        key = self._by_uid[uid].key
        is_back = lost.note_up(key, data["points"])
        lost.tell_ends()  # before its client is up with something else
        for other in [each for each in self._away if self._keys.get(each) == key]:
            del self._away[other], self._keys[other]
        self._up[uid], self._keys[uid] = data, key
        return is_back
