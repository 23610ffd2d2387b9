"""Names that users give, and that become names of files and folders."""

from __future__ import annotations

import re

#: bytes of UTF-8 in a name: file systems take 255, and suffixes are added
LONGEST_NAME = 200
#: what separates folders, or stands for something else than itself on one of the systems
_SPECIAL = set('/\\:*?"<>|')
#: names of devices on Windows, with or without a suffix
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)


def why_no_name(name: str) -> str:
    """Why a name cannot be that of a file and a folder on every system; "" where it can.

    Args:
        name: the name of a concept, of an entry in a grid, …

    Example:
        >>> why_no_name("banana-blur"), why_no_name("../up"), why_no_name("nul.txt")
        ('', "it has '/'", 'it is the name of a device on Windows')
    """
    if not name.strip():
        return "it is empty"
    if special := sorted(_SPECIAL & set(name)):
        return f"it has {special[0]!r}"
    if not name.isprintable():
        return "it has characters that cannot be printed"
    if name[0] in ".-~" or name[0].isspace():
        return f"it begins with {name[0]!r}"
    if name[-1] == "." or name[-1].isspace():
        return f"it ends with {name[-1]!r}"
    if _DEVICES.fullmatch(name):
        return "it is the name of a device on Windows"
    if len(name.encode()) > LONGEST_NAME:
        return f"it is longer than {LONGEST_NAME} bytes"
    return ""
