"""Settings as the process that serves tells other commands of them: as JSON, and without secrets.

Does not know who tells, or how.
"""

from collections.abc import Mapping

from strop.proxy.auth import key_id
from strop.proxy.settings import settings
from strop.proxy.settings.kinds import Kind, shown
from strop.proxy.settings.settings import KINDS, Settings, value_of

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
    if kind is not None and kind.secret:
        return "another" if value else kind.shown(value)
    return shown(value)


def settings_of(told: Mapping[str, object]) -> Settings:
    """Return the settings that were told of, but for secrets, whatever their file says by now.

    Raises:
        ConfigError: another release of strop told of them, and this one has no such value.
    """
    names = [name for name, kind in KINDS.items() if name in told and not kind.secret]
    whose = "the strop that serves"
    return settings.of({name: settings.checked(name, told[name], whose) for name in names})


def _told(kind: Kind, value: object) -> object:
    if kind.secret:
        secrets = [value] if isinstance(value, str) else value
        assert isinstance(secrets, list | tuple)
        return [key_id(one) for one in secrets if one]
    return list(value) if isinstance(value, tuple) else value
