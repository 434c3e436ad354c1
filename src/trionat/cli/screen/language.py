"""The language of the screen: English, or Chinese where the locale says so. Log lines, JSON and error codes are English everywhere."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES: Final = ("LC_ALL", "LC_MESSAGES", "LANG")
_LONGEST_REASON: Final = 500
"""Characters of a reason that is looked up. Some come from the other side, and a longer one is none of ours."""

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


@functools.cache
def _any_of(template: str) -> re.Pattern[str]:
    """Return what matches the texts that are made from a template."""
    parts = _PLACEHOLDER.split(template)
    return re.compile(
        "".join(f"(?P<{part}>.+?)" if at % 2 else re.escape(part) for at, part in enumerate(parts))
    )


@attrs.frozen(eq=False)
class Language:
    """Says texts, which the code has in English with `{placeholders}`, in one language. A text without a translation stays as it is.

    `texts` are those of the screen, `reasons` what comes from the rest of the program, or from a server, as a whole sentence; `joints` are what stands between several.
    """

    name: str
    texts: Mapping[str, str] = attrs.field(factory=dict[str, str], repr=False)
    reasons: Mapping[str, str] = attrs.field(factory=dict[str, str], repr=False)
    joints: Mapping[str, str] = attrs.field(factory=dict[str, str], repr=False)

    def __call__(self, text: str, **values: object) -> str:
        """Return a text of the screen."""
        return self.texts.get(text, text).format(**values)

    def reason(self, text: str) -> str:
        """Return why something is so: whole, or those of its parts that are known."""
        if len(text) > _LONGEST_REASON or not self.reasons:
            return text
        for template, own in self.reasons.items():
            if (found := _any_of(template).fullmatch(text)) is not None:
                values = {name: self.reason(value) for name, value in found.groupdict().items()}
                return own.format(**values)
        # Split in one way only: to try several would take the longer the more of them a text has.
        joint = next((joint for joint in self.joints if joint in text), None)
        if joint is None:
            return text
        parts = text.split(joint, 1)
        said = [self.reason(part) for part in parts]
        return text if said == parts else self.joints[joint].join(said)


ENGLISH: Final = Language("en")


def language_of(environ: Mapping[str, str] = os.environ) -> Language:
    """Return the language that the locale's name says; whether the system has that locale does not matter.

    Every kind of Chinese is simplified Chinese here, as in the console. The console of Linux itself (`TERM=linux`) has no Chinese characters, so that one is in English.
    """
    name = re.split(r"[_.@-]", locale_of(environ))[0].lower()
    if name != "zh" or environ.get("TERM", "").startswith("linux"):
        return ENGLISH
    from trionat.cli.screen import chinese  # noqa: PLC0415 - memory, for everybody else

    return Language("zh", chinese.TEXTS, chinese.REASONS, chinese.JOINTS)


def locale_of(environ: Mapping[str, str]) -> str:
    """Return the name of the locale for messages, empty where none is set (POSIX, XBD 8.2)."""
    return next((value for each in _VARIABLES if (value := environ.get(each))), "")
