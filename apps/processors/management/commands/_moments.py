"""A time as it is typed: so long ago, or a date."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from apps.errors import UsageError

_AGO: Final = re.compile(r"(\d{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str) -> str:
    """`--since` as RFC 3339, UTC, milliseconds: from `10m`, `2h` (s, m, h, d ago) or an RFC 3339 time.

    Raises UsageError.
    """
    try:
        if ago := _AGO.fullmatch(text):
            when = datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        else:
            when = datetime.fromisoformat(text)
        return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):  # OverflowError: before the year 1, or after 9999
        raise UsageError(
            f"{text!r} is not a time", hint="--since takes 10m, 2h, 1d or a time like 2026-01-31T12:00:00Z"
        ) from None
