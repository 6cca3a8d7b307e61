"""Where barnraise keeps what belongs to this user rather than to one run: paths, and the one key made when first needed.

$BARNRAISE_HOME, or $XDG_DATA_HOME/barnraise, or ~/.local/share/barnraise (macOS: ~/Library/Application Support/barnraise)
  cluster.key        the cluster key of this user's runs (0600)
  peers/             data directories of peers that joined runs of others
"""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from barnraise.errors import ConfigError
from barnraise.identity import ClusterKey

HOME_VARIABLE: Final = "BARNRAISE_HOME"
CLUSTER_KEY_FILE: Final = "cluster.key"
PEERS_DIRECTORY: Final = "peers"


def home(environment: Mapping[str, str] | None = None, platform: str = sys.platform) -> Path:
    """Return the directory; it need not be there yet.

    A relative ``XDG_DATA_HOME`` is ignored, as the XDG Base Directory Specification asks.

    Args:
        environment: variables; None: this process's.
        platform: as `sys.platform` names it.
    """
    variables = os.environ if environment is None else environment
    if named := variables.get(HOME_VARIABLE):
        return Path(named).expanduser().absolute()
    base = Path(variables.get("XDG_DATA_HOME", ""))
    if base.is_absolute():
        return base / "barnraise"
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "barnraise"
    return Path.home() / ".local" / "share" / "barnraise"


def cluster_key_file() -> Path:
    """Return where the cluster key of this user's runs lies, whether or not it was made yet."""
    return home() / CLUSTER_KEY_FILE


def cluster_key() -> ClusterKey:
    """Return the cluster key of this user's runs; the first call on a machine makes it.

    Raises:
        ConfigError: it cannot be read or made, or other users can read it.
    """
    path = cluster_key_file()
    if not path.exists():
        # Made aside and given its name whole: another process may be making one at this moment, and reading ours.
        aside = path.with_name(f".{secrets.token_hex(8)}.key")
        ClusterKey.create(aside)
        try:
            path.hardlink_to(aside)
        except FileExistsError:
            pass
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be made ({error.strerror}). Name another place: {HOME_VARIABLE}."
            ) from error
        finally:
            aside.unlink()
    return ClusterKey.load(path)


def peers_directory() -> Path:
    """Return where the peers that joined others' runs keep their data, one directory each."""
    return home() / PEERS_DIRECTORY
