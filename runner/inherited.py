"""What an engine's processes inherit of our environment: a chosen few, since conmon keeps them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_NAMES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("REGISTRY_AUTH_FILE", "STORAGE_DRIVER", "STORAGE_OPTS"),
        *("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    }
)
_PREFIXES = ("CONTAINER_", "CONTAINERS_", "DOCKER_", "PODMAN_")


def engine_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Choose what the engine is started with; the rest may be secret, or NOTIFY_SOCKET."""
    chosen = {
        name: value for name, value in ours.items() if name in _NAMES or name.startswith(_PREFIXES)
    }
    runtime_dir = Path(f"/run/user/{os.getuid()}")
    if os.getuid() != 0 and runtime_dir.is_dir():
        chosen.setdefault("XDG_RUNTIME_DIR", str(runtime_dir))
        chosen.setdefault("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime_dir}/bus")
    # Its complaints are read: they are to be in English.
    return {**chosen, "LC_ALL": "C"}
