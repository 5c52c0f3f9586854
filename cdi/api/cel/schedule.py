"""Regular expression for the schedule of a DataImportCron."""

from __future__ import annotations

from cdi.api.schedule import DAYS, MACROS, MONTHS


def _field(*numbers: str) -> str:
    """Return an expression for a field with these numbers or names."""
    number = f"({'|'.join(numbers)})"
    term = f"([*?]|{number}(-{number})?)(/0*[1-9][0-9]{{0,8}})?"
    return f",*{term}(,+{term})*,*"


_SPACE = r"\\s+"
_FIELDS = (
    _field("0*[1-5]?[0-9]"),
    _field("0*1?[0-9]", "0*2[0-3]"),
    _field("0*[1-9]", "0*[12][0-9]", "0*3[01]"),
    _field("0*[1-9]", "0*1[0-2]", *MONTHS),
    _field("0*[0-6]", *DAYS),
)
SCHEDULE = "".join((
    "^(?i)($|",
    rf"((CRON_)?TZ=\\S*{_SPACE})?(",
    "@every [0-9a-zµμ.]+|",
    "|".join(MACROS),
    rf"|\\s*({_SPACE.join(_FIELDS)})\\s*",
    ")$)",
))  # fmt: skip
"""Every valid schedule matches; order of ranges, durations and time zones are left to the admission webhook.

Written for a string literal of the rules' language, in which backslashes are doubled.
"""
