"""Environment variables that others make for a service named strop, and that set nothing.

Pure. Kubernetes gives them to every container beside such a service, Docker to linked ones:
https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
"""

import re
from typing import Final

# Of `strop`, or of one whose name begins so, such as `strop-vllm`.
_NAME: Final = re.compile(
    r"STROP(?:_\w+?)??_(?:(?P<host>SERVICE_HOST)|(?P<number>SERVICE_PORT(?:_\w+)?)"
    r"|(?P<url>PORT(?:_\d+_(?:TCP|UDP|SCTP))?)|PORT_\d+_(?:TCP|UDP|SCTP)_(?:PROTO|PORT|ADDR))"
)
_URL: Final = re.compile(r"(?:tcp|udp|sctp)://\S+")


def is_of_a_service(variable: str, text: str) -> bool:
    """Whether `variable` says where a service is; one that a person could have meant doesn't."""
    found = _NAME.fullmatch(variable)
    if found is None:
        return False
    if found["url"]:
        return _URL.fullmatch(text) is not None
    return text.isdecimal() if found["number"] else True
