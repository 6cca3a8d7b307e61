"""What the peers of a context tell each other over the control plane; only forms."""

from typing import Annotated, Final

import msgspec

from barnraise.api.roster import Formed, Want
from barnraise.swarm.records import Count, Decoder

MAX_REASON_CHARS: Final = 400
MAX_WORD_BYTES: Final = 60 * 1024


class GaveUp(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """A collective failed here in a way that nobody survives; there will be no other."""

    is_users_mistake: bool
    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """The group goes on without this process of yours."""

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]


class Left(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """I am going, and shall not be back."""

    done: Count
    """The last collective whose result I have."""


class Word(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """About who is in: `collective.survival_messages`."""

    message: Annotated[bytes, msgspec.Meta(max_length=MAX_WORD_BYTES)]


class OfLinks(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """About the links that all plan by: `collective.adoption`."""

    message: Annotated[bytes, msgspec.Meta(max_length=MAX_WORD_BYTES)]


Statement = Want | Formed | GaveUp | Refused | Left | Word | OfLinks

encode = msgspec.msgpack.Encoder().encode
decode_statement: Decoder[Statement] = Decoder(msgspec.msgpack.Decoder(Statement))
