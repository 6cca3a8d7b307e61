"""What the peers of a context tell each other over the control plane, and the header of a bulk transfer; only forms."""

from typing import Annotated, Final, Literal

import msgspec

from barnraise.api.reduction import Kind
from barnraise.api.roster import Formed, Want
from barnraise.swarm.records import Count, Decoder

MAX_REASON_CHARS: Final = 400


class Enter(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """I have called this collective."""

    sequence: Count
    group: Annotated[bytes, msgspec.Meta(max_length=32)]
    operation: Literal["mean", "sum", "barrier"]
    dtype: Literal["float32", "float64"]
    size: Count


class GaveUp(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """A collective failed here; there will be no other."""

    is_users_mistake: bool
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]


class Left(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """I am going, and shall not be back."""


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a bulk transfer is."""

    sequence: Count
    kind: Kind


Statement = Want | Formed | Enter | GaveUp | Left

encode = msgspec.msgpack.Encoder().encode
decode_statement: Decoder[Statement] = Decoder(msgspec.msgpack.Decoder(Statement))
decode_header: Decoder[Header] = Decoder(msgspec.msgpack.Decoder(Header))
