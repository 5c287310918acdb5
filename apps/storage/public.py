"""Whether a store can be reached from other networks than ours: where a deployment elsewhere may upload to it."""

import ipaddress
import socket
from urllib.parse import urlsplit

from apps.settings import BucketSettings


def is_public(bucket: BucketSettings | None) -> bool:
    """By the address that containers use. A folder is never; AWS itself always; a name as it resolves here."""
    if bucket is None:
        return False
    endpoint = bucket.container_endpoint or bucket.endpoint
    if endpoint is None:
        return True
    host = urlsplit(endpoint).hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False  # a name that is known to containers of this machine alone
    return all(ipaddress.ip_address(address[4][0]).is_global for address in found)
