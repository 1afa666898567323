"""The formats of strings that JSON Schema and pydantic name, as regular expressions.

A format's texts are at least what every reader takes for one; some that a reader might take are
not among them (dates beyond the 28th, addresses that are abbreviated, uncommon schemes).
"""

from __future__ import annotations

_DATE, _TIME = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])", r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d"
_ZONE = r"(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_GROUP = "[0-9a-fA-F]{1,4}"
# Two halves around `::`, or all eight groups.
_IPV6 = (
    rf"({_GROUP}(:{_GROUP}){{7}}|::|::{_GROUP}(:{_GROUP}){{0,5}}|{_GROUP}(:{_GROUP}){{0,5}}::"
    rf"|{_GROUP}(:{_GROUP}){{0,2}}::{_GROUP}(:{_GROUP}){{0,2}})"
)
# 62 characters at most, and a letter first, so that the last one is no number.
_LABEL = "[a-z][a-z0-9]{0,30}(-[a-z0-9]{1,30})?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,3}}"
_IN_PATH = r"[A-Za-z0-9._~!$&'()*+,;=:@/-]"
_IN_QUERY = r"[A-Za-z0-9._~!$&'()*+,;=:@/?-]"
_NUMBER = r"(0|[1-9]\d{0,3})"
_CLOCK = rf"T({_NUMBER}H({_NUMBER}M)?({_NUMBER}S)?|{_NUMBER}M({_NUMBER}S)?|{_NUMBER}S)"
_BASE64 = "[A-Za-z0-9+/]"
_LAST64 = rf"({_BASE64}[AQgw]==|{_BASE64}{{2}}[AEIMQUYcgkosw048]=)?"
_URI = rf"https?://{_HOST}(:[1-9]\d{{0,3}})?(/{_IN_PATH}*)?(\?{_IN_QUERY}*)?(#{_IN_QUERY}*)?"
# No control character, and nothing that a system might not take in a name.
_PATH = r"/?[A-Za-z0-9_ .-]+(/[A-Za-z0-9_ .-]+)*"

FORMATS = {
    "date": _DATE,
    "time": _TIME + _ZONE,
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "duration": rf"P({_NUMBER}D({_CLOCK})?|{_CLOCK})",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"({_IPV4}|{_IPV6})",
    "hostname": _HOST,
    "email": rf"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@({_LABEL}\.){{1,3}}[a-z]{{2,10}}",
    "uri": _URI,
    "url": _URI,
    "json-pointer": r"(/([^~/]|~[01])*)*",
    "path": _PATH,
    "file-path": _PATH,
    "directory-path": _PATH,
    "base64": rf"({_BASE64}{{4}})*{_LAST64}",
    "base64url": r"([A-Za-z0-9_-]{4})*",
}
# What they say holds for every string.
PLAIN = frozenset({"password", "binary"})
# Patterns in wide use that are no regular ones, and a format of which every text matches: zod's
# addresses.
MATCHING = {
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
    r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": "email",
}
