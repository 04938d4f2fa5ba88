"""Image names of annotation files that are URLs; `image_index` finds the files that they mean."""

import re
from urllib.parse import parse_qs, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LOCAL_FILE = re.compile(r"[?&]d=")  # Label Studio: /data/local-files/?d=folder/image.jpg


def is_url(name: str) -> bool:
    """Return whether a name is a URL, of whatever protocol."""
    return _URL.match(name) is not None


def path_in_name(name: str) -> str:
    """Return the path in a name, still escaped: that of a URL, or the `d` of Label Studio's local files."""
    if _LOCAL_FILE.search(name):
        return parse_qs(urlsplit(name).query).get("d", [name])[0]
    return urlsplit(name).path if is_url(name) else name
