"""Settings as the process that serves tells other commands of them: as JSON, and without secrets.

Does not know who tells, or how.
"""

from collections.abc import Mapping
from pathlib import Path

from strop.proxy import settings
from strop.proxy.auth import key_id
from strop.proxy.setting_kinds import Kind, shown
from strop.proxy.settings import KINDS, Settings, value_of

Told = dict[str, object]
"""The value of every setting by its key, as `section.key`; of a secret, ids that tell it apart."""


def tell(of: Settings) -> Told:
    """Return what may be told of all settings."""
    return {name: _told(kind, value_of(of, name)) for name, kind in KINDS.items()}


def differences(told: Mapping[str, object], other: Settings) -> list[str]:
    """Return the keys of which something else was told than `other` has."""
    now = tell(other)
    return [name for name, value in told.items() if value != now.get(name)]


def words(told: Mapping[str, object], name: str) -> str:
    """Return for people what was told of the setting `name`."""
    value, kind = told[name], KINDS.get(name)
    return "another" if kind is not None and kind.secret and value else shown(value)


def settings_of(home: Path, told: Mapping[str, object]) -> Settings:
    """Return the settings that were told of, but for secrets.

    Raises:
        ConfigError: what one of them names isn't there any more.
    """
    kept = {name: value for name, value in told.items() if name in KINDS}
    kept |= {name: None for name in kept if KINDS[name].secret}
    return settings.load(home, flags=kept).settings


def _told(kind: Kind, value: object) -> object:
    if kind.secret:
        secrets = [value] if isinstance(value, str) else value
        assert isinstance(secrets, list | tuple)
        return [key_id(one) for one in secrets if one]
    return list(value) if isinstance(value, tuple) else value
