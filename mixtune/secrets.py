"""Mask passwords and tokens in addresses, in what is printed, logged or stored with a study."""

from __future__ import annotations

import logging
import re

HIDDEN = "***"
# user:password@ of an address, also where the password itself holds an @ that was not escaped
_USER = re.compile(r"(?P<before>://[^\s:/@]*):(?P<secret>[^\s/]+)@")
_QUERY = re.compile(
    r"(?P<before>[?&;](?:password|passwd|pwd|token|access_token|secret|api_?key|sslpassword)=)(?P<secret>[^\s&;'\"]+)",
    re.I,
)


def masked(text: str) -> str:
    """Return the text with the passwords and tokens of its addresses masked."""
    text = _USER.sub(lambda m: f"{m['before']}:{HIDDEN}@", text)
    return _QUERY.sub(lambda m: f"{m['before']}{HIDDEN}", text)


class MaskSecrets(logging.Filter):
    """A filter that masks what is logged, with its arguments and its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; return True."""
        record.msg, record.args = masked(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = masked(logging.Formatter().formatException(record.exc_info))
        return True
