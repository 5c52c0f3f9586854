"""Interpretation of a VM's serial console; it has no side effects, and the result does not depend on chunk boundaries.

The tables below hold the messages of firmware, boot loader, kernel and systemd for success and failure. A failure or
a proof of success decides as soon as it is printed. A hint (systemd's greeting) counts only if nothing better follows
before the timeout.
"""

from __future__ import annotations

import codecs
import enum
import re
from dataclasses import dataclass, replace

TAIL = 64 << 10
"""Characters of console output that are kept."""
SHOWN = 400
"""Characters of a line that a sighting quotes."""
LINE = 4096
"""Length at which lines are truncated; all relevant messages are shorter."""


class Kind(enum.Enum):
    """The meaning of a console line."""

    BOOTED = "booted"
    HINT = "hint"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleMatch:
    """A console line that was recognised."""

    kind: Kind
    what: str
    """Its meaning in a few words."""
    line: str
    """The text without control sequences."""


@dataclass(frozen=True, slots=True)
class ConsolePattern:
    """A pattern to search for, anchored at the start of a line if it says so.

    A match must not depend on what follows it, because lines are searched while they are being printed.
    """

    kind: Kind
    what: str
    pattern: re.Pattern[str]


def _signs(kind: Kind, table: tuple[tuple[str, str], ...]) -> tuple[ConsolePattern, ...]:
    return tuple(ConsolePattern(kind, what, re.compile(pattern)) for what, pattern in table)


FAILURES = _signs(
    Kind.FAILED,
    (
        ("the firmware found nothing to boot from", r"No bootable device"),
        ("the firmware found nothing to boot from", r"BdsDxe: No bootable option"),
        ("the firmware fell back to its shell", r"UEFI Interactive Shell|^Shell> "),
        (
            "the boot sector found no system",
            r"Missing operating system|Operating system not found|Error loading operating system",
        ),
        (
            "the boot sector found no system",
            r"Invalid partition table|Non-[Ss]ystem disk|isolinux\.bin missing or corrupt",
        ),
        ("the boot loader stopped at its prompt", r"^grub rescue> |^grub> |Minimal BASH-like line editing"),
        ("the kernel panicked", r"Kernel panic - not syncing"),
        ("the root filesystem was not found", r"Unable to mount root fs|ALERT! .{0,200}? does not exist\."),
        ("the initramfs gave up and started a shell", r"^\(initramfs\) |Dropping to a shell!|^dracut:/# "),
        ("the initramfs gave up and started a shell", r"^initramfs emergency recovery shell"),
        (
            "the system went into emergency mode",
            r"You are in (?:emergency|rescue) mode|Entering emergency mode|Give root password for maintenance",
        ),
        ("the system went into emergency mode", r"Reached target (?:emergency\.target|Emergency Mode)"),
        ("the init process could not be started", r"Failed to execute /(?:init|sbin/init)|No working init found"),
    ),
)

SUCCESSES = _signs(
    Kind.BOOTED,
    (
        ("a login prompt", r"^(?!Last )(?:[A-Za-z0-9][A-Za-z0-9._-]{0,63} )?login:"),
        ("the cloud-init run is finished", r"Cloud-init v\. ?\S{1,60}? finished at "),
        (
            "the multi-user system is reached",
            r"Reached target (?:multi-user\.target|graphical\.target|getty\.target)",
        ),
        ("the multi-user system is reached", r"Reached target (?:Multi-User System|Graphical Interface|Login Prompts)"),
        ("a login service was started", r"Started (?:serial-getty@|getty@|Serial Getty on |Getty on )"),
    ),
)

HINTS = _signs(
    Kind.HINT,
    (
        ("the system's own userspace was started", r"^Welcome to (?:(?!GRUB|[Ii]nitramfs|dracut)[^!]){1,200}!"),
        ("systemd reached the basic system", r"Reached target (?:basic\.target|Basic System)"),
    ),
)

KERNEL = "Linux version "

# ECMA-48: CSI sequences, OSC strings, two-character escapes; then the remaining control characters.
ESCAPES = re.compile(
    r"\x1b\[[0-?]{0,32}[ -/]{0,4}[@-~]|\x1b\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)|\x1b[ -/]{0,2}[0-Z\\^-~]"
)
UNFINISHED = re.compile(r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}|\][^\x07\x1b]{0,256}\x1b?|[ -/]{0,2})?\Z")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Console:
    """Parser of a console; `feed` returns the deciding sighting once, and None from then on."""

    def __init__(self, *, marker: str | None = None, expect: re.Pattern[str] | None = None) -> None:
        """Recognise `marker`, which the seed prints at the end of the boot.

        With `expect`, nothing else proves success; it is searched for in every line, even before the line is complete.
        """
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""
        """The start of an incomplete escape sequence."""
        self._line = ""
        self._expect = expect
        self._marker = marker
        self._tail = ""
        self.hint: ConsoleMatch | None = None
        self.decided: ConsoleMatch | None = None
        """Its line is extended until the end of the line is printed."""
        self._deciding = False
        self.kernel = False
        """Whether a Linux kernel has printed its banner."""
        self.received = 0
        """Bytes."""

    @property
    def tail(self) -> str:
        """The last 64 Ki characters, without control sequences."""
        return self._tail

    @property
    def last_line(self) -> str:
        """The last non-blank line, as far as it has been printed, or an empty string."""
        return self._tail.rstrip().rpartition("\n")[2].strip()

    @property
    def awaits_text(self) -> bool:
        """Return whether only the expected text proves success."""
        return self._expect is not None

    def feed(self, data: bytes) -> ConsoleMatch | None:
        """Process more output; return the deciding sighting if it is in there."""
        self.received += len(data)
        text = self._pending + self._decode.decode(data)
        unfinished = UNFINISHED.search(text)
        self._pending = "" if unfinished is None else unfinished.group()
        text = ESCAPES.sub("", text[: len(text) - len(self._pending)])
        decided: ConsoleMatch | None = None
        # A lone carriage return overwrites the line, as boot loaders do when counting down.
        for character_run in re.split(r"(\n|\r)", text):
            if character_run in ("\n", "\r"):
                if character_run == "\n":
                    self._keep("\n")
                self._line = ""
                self._deciding = False
                continue
            clean = CONTROLS.sub("", character_run)
            self._keep(clean)
            self._line = (self._line + clean)[:LINE]
            if self._deciding and self.decided is not None:
                self.decided = replace(self.decided, line=self._line[:SHOWN])
            if clean and self.decided is None:
                decided = decided or self._judge()
        return decided

    def _keep(self, text: str) -> None:
        self._tail = (self._tail + text)[-TAIL:]

    def _judge(self) -> ConsoleMatch | None:
        """Search the current line, as far as it has been printed."""
        line = self._line
        self.kernel = self.kernel or KERNEL in line
        # The match that ends first is the one that would have been found first if bytes had arrived one at a time.
        found = sorted(
            ((match.end(), sign) for sign in self._signs() if (match := sign.pattern.search(line)) is not None),
            key=lambda pair: pair[0],
        )
        for end, sign in found:
            if sign.kind is not Kind.HINT:
                self.decided = ConsoleMatch(kind=sign.kind, what=sign.what, line=line[:SHOWN])
                self._deciding = True
                return self.decided
            if self.hint is None:
                self.hint = ConsoleMatch(kind=sign.kind, what=sign.what, line=line[:end])
        return None

    def _signs(self) -> tuple[ConsolePattern, ...]:
        if self._expect is not None:
            return (*FAILURES, ConsolePattern(Kind.BOOTED, "the expected text", self._expect), *HINTS)
        if self._marker is not None:
            mark = ConsolePattern(Kind.BOOTED, "the seed's last script has run", re.compile(re.escape(self._marker)))
            return (*FAILURES, mark, *SUCCESSES, *HINTS)
        return (*FAILURES, *SUCCESSES, *HINTS)
