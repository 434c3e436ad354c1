"""What two nodes of a cluster say before a connection between them is a tunnel: one frame each way. Bytes and values only."""

from __future__ import annotations

import json
from typing import ClassVar, Final, Self

import attrs

from trionat.errors import RemoteProtocolError
from trionat.protocol.fields import Fields
from trionat.protocol.frames import Frame, encode_frame

NODE_VERSION: Final = 1
NODE_ALPN: Final = "trionat-node-1"
"""What both sides offer in their TLS handshake; another version has another name."""


@attrs.frozen(kw_only=True)
class NodeHello:
    """Who dials: the node's name, and the proof that it has the cluster's key."""

    id: ClassVar[int] = 40120
    node: str
    proof: str = attrs.field(repr=False)

    def encode(self) -> bytes:
        """Return the whole frame."""
        values = {"version": NODE_VERSION, "node": self.node, "proof": self.proof}
        return encode_frame(self.id, json.dumps(values, separators=(",", ":")).encode())

    @classmethod
    def decode(cls, frame: Frame) -> Self:
        """Read it.

        Raises:
            RemoteProtocolError: it is none.
        """
        if frame.id != cls.id:
            raise RemoteProtocolError(f"frame {frame.id} instead of a node's first one")
        fields = Fields.parse("NODE_HELLO", frame.payload)
        return cls(node=fields.text("node", longest=64), proof=fields.text("proof"))


@attrs.frozen(kw_only=True)
class NodeWelcome:
    """The answer: visitors may come."""

    id: ClassVar[int] = 40121
    node: str

    def encode(self) -> bytes:
        """Return the whole frame."""
        return encode_frame(self.id, json.dumps({"node": self.node}).encode())

    @classmethod
    def decode(cls, frame: Frame) -> Self:
        """Read it.

        Raises:
            RemoteProtocolError: it is none.
        """
        if frame.id != cls.id:
            raise RemoteProtocolError(f"frame {frame.id} instead of a node's answer")
        return cls(node=Fields.parse("NODE_WELCOME", frame.payload).text("node", longest=64))
