"""A port of loopback that stays a test's own while nobody listens on it."""

import socket


def kept_port() -> tuple[socket.socket, int]:
    """Return a socket and its free port, which is kept for as long as the socket is open.

    The socket is bound and never listens: clients that connect are refused, nobody else is given
    the port as a free one, and servers that set SO_REUSEADDR, as all here do, may listen on it.
    """
    keeper = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    return keeper, int(keeper.getsockname()[1])
