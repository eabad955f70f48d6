"""A journal without what names a machine or a person, to be sent to somebody else. Pure.

Hosts, processes, users, engines, groups, drivers, boots, paths, labels and other ids are numbered, each in the order of
its first appearance, and the same one has the same number everywhere. Command lines, queries, credentials and generated
tokens are left out. What the rules of journals need is kept, so that a redacted journal breaks the rules that the
original breaks, and no other.

Fields are redacted by what they mean. In text (reasons, answers of engines), what the fields of the journal name is
found again; beside it whatever looks like a path, a URL, an address, an id, a credential or a quoted word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..core.encoding import decode, encode
from ..core.facts import PAUSE_MODES, Fact, Grade
from ..core.journal import EVENTS, Entry
from ..core.states import State
from ..rules.identity import own_identity, processes_of

#: Quoted words that name nothing of a user's: modes, tags and names of facts and states.
_PLAIN = {*PAUSE_MODES, "retract", "in_place", "weights", "kv_cache", "cuda_graph", *Fact, *State, ""} | {
    grade.name.lower() for grade in Grade
}

#: Learned words shorter than this stand for nothing in a text: an engine may be called `a`.
_SHORTEST = 3

_QUOTED = r"(?<![\w'\"])(?P<quote>['\"])(?P<inside>(?:(?!(?P=quote))[^\\]|\\.)*)(?:(?P=quote)|$)"
_SECRET = (
    r"(?P<secret>(?i:(?:\w+[_-]|api|admin)key|token|secret|password|authorization|bearer))(?:\s*[=:]\s*|\s+(?=\S*\d))"
    r"(?:(?i:bearer)\s+)?[^\s,;)\]}]+"
)
_URL = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>\[[0-9A-Fa-f:]+\](?::\d+)?|[^\s/?#'\",)\]]+)[^\s'\",)\]]*"
_BOOT = r"(?P<boot>[^\s@'\"(]+@[^\s@,:]+:\d+:\d+\.\d\d(?:,[^\s@,:]+:\d+:\d+\.\d\d)*)"
_PATH = r"(?P<path>(?<![\w.~/-])(?:~[\w.-]*)?/[^\s'\",;:)\]}]+)"
_MAIL = r"(?P<mail>[\w.+-]+@[\w-]+(?:\.[\w-]+)+)"
_IP = r"(?P<ip>(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])|\[?[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){3,7}\]?(?![\w.]))"
_ID = r"(?P<id>(?<!\w)(?=[a-fA-F-]*\d)(?=[\d-]*[a-fA-F])[0-9a-fA-F]{8,}(?:-[0-9a-fA-F]{4,})*(?![\w-]))"
_PIDS = r"(?P<pids>\b(?:pids?|process(?:es)?)\b:? )(?P<numbers>\d+(?:, \d+)*)"
#: A holder of memory (`core.readings.Holder`) or a driver; a command line without an end goes on to the last.
_COMMAND = (
    r"(?P<of>\bpid \d+(?: on [\w.-]+)?) "
    r"(?P<line>\((?:.*?(?:, engine [^\s)]+\)|\)(?= holds \d+ MiB of ))|.*$))"
)
_ON = r"(?P<on>\b(?:runs|pid \d+) on )(?P<node>[\w.-]+)"

_HOME = re.compile(r"/(?:home|Users)/([^/\s'\"]+)")
_WHO = re.compile(r"pid (?P<pid>\d+) on (?P<host>\S+) \(.*\)", re.DOTALL)


class Redaction:
    """Redacts the entries of one journal. What its fields name is learned from all of `entries` first."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        self._known: dict[str, str] = {}
        self._learns = True
        self._text = _pattern(())
        for entry in entries:
            self.of(entry)  # numbers what it names
        self._learns = False
        self._text = _pattern(self._known)

    def of(self, entry: Entry) -> Entry:
        """The entry without what names a machine or a person."""
        event, begin = encode(entry.event), f"{entry.engine}: "
        found = {name: self._value(name, value) for name, value in event.items()}
        if entry.engine and str(event.get("reason", "")).startswith(begin):  # a short name is not found in a text
            found["reason"] = f"{self._name('engine', entry.engine)}: {self._in_text(event['reason'][len(begin) :])}"
        by = self._name("driver", entry.driver) if entry.key or entry.engine else self._name("move", entry.driver)
        return replace(
            entry,
            event=decode(EVENTS[event["type"]], {**found, "type": event["type"]}),
            driver=by,
            engine=self._name("engine", entry.engine),
            key=self._address(entry.key),
        )

    def _value(self, name: str, value: Any) -> Any:
        by_name: dict[str, Callable[[Any], Any]] = {
            "who": self._who,
            "url": self._in_text,
            "group": lambda group: group if group == "default" else self._name("group", group),
            "boot": self._boot,
            "move_id": lambda move: self._name("move", move),
            "drivers": lambda drivers: [self._name("driver", each) for each in drivers],
            "gone": lambda drivers: [self._name("driver", each) for each in drivers],
            "failed": lambda names: [self._name("engine", each) for each in names],
            "returned": lambda by: {self._name("driver", key): self._value("", each) for key, each in by.items()},
            "pids": lambda pids: [self._pid(each) for each in pids] if isinstance(pids, list) else pids,
            "output_ids": lambda _: [],
        }
        if value is None or name in ("type", "version", "trigger", "command", "error", "effect"):
            return value
        if name in by_name:
            return by_name[name](value)
        if isinstance(value, str):
            return self._in_text(value)
        if isinstance(value, list | tuple):
            return [self._value("", each) for each in value]
        if isinstance(value, Mapping):
            return {self._in_text(key): self._value(key, each) for key, each in value.items()}
        return value

    # names

    def _name(self, kind: str, value: str) -> str:
        """This one's number among its kind; it is found again in texts."""
        if not value:
            return value
        numbered = f"{kind}-{self._number(kind, value)}"
        long = len(value) >= _SHORTEST or kind == "host"
        if self._learns and long and any(letter.isalpha() for letter in value) and value not in _PLAIN:
            self._known.setdefault(value.lower(), numbered)
        return numbered

    def _number(self, kind: str, value: str) -> int:
        mine = sum(1 for each, _ in self._numbers if each == kind)
        return self._numbers.setdefault((kind, value), mine + 1)

    def _pid(self, pid: object) -> int:
        return self._number("pid", str(pid))

    def _host(self, host: str) -> str:
        """This host's number. By the first part of its name alone it is found again too."""
        host = host.strip("[]").lower()
        numbered, first = self._name("host", host), host.partition(".")[0]
        if self._learns and any(letter.isalpha() for letter in first):
            self._known.setdefault(first, numbered)
        return numbered

    def _address(self, address: str) -> str:
        """A host and port, or a URL: the port stays, since it tells engines of one host apart."""
        if "://" in address:
            return self._in_text(address)
        host, colon, port = address.rpartition(":")
        return f"{self._host(host)}:{port}" if colon and port.isdigit() else self._name("engine", address)

    def _who(self, who: str) -> str:
        found = _WHO.fullmatch(who)
        if found is None:
            return self._name("process", who)
        return f"pid {self._pid(found['pid'])} on {self._host(found['host'])}"

    def _boot(self, boot: str) -> str:
        own = self._name("boot", own_identity(boot))
        parts = [f"{self._host(each.node)}:{self._pid(each.pid)}:{each.start_time:.2f}" for each in processes_of(boot)]
        return f"{own}@{','.join(parts)}" if parts else own

    # texts

    def _in_text(self, text: str) -> str:
        for user in _HOME.findall(text):
            self._name("user", user)
        return self._text.sub(self._replaced, text)

    def _replaced(self, found: re.Match[str]) -> str:
        match found.lastgroup:
            case "secret":
                return f"{found['secret']}=(left out)"
            case "line":
                return f"{self._in_text(found['of'])} (left out)"
            case "boot":
                return self._boot(found["boot"])
            case "authority":
                return f"{found['scheme']}://{self._authority(found['authority'])}"
            case "known":
                return self._known[found["known"].lower()]
            case "inside":
                return found["quote"] + self._quoted(found["inside"]) + found["quote"]
            case "node":
                return self._replaced_pids(found["on"]) + self._host(found["node"])
            case "numbers":
                return found["pids"] + ", ".join(str(self._pid(each)) for each in found["numbers"].split(", "))
            case "ip":
                return self._host(found["ip"])
            case str(kind):
                return self._name(kind, found[kind])
        return found[0]

    def _replaced_pids(self, words: str) -> str:
        return re.sub(r"\d+", lambda number: str(self._pid(number[0])), words)

    def _authority(self, authority: str) -> str:
        host, colon, port = authority.rpartition("@")[2].rpartition(":")
        return f"{self._host(host)}:{port}" if colon and port.isdigit() else self._host(authority)

    def _quoted(self, inside: str) -> str:
        if inside in _PLAIN or re.fullmatch(r"[\d.,\s-]*", inside):
            return inside
        if ("engine", inside) in self._numbers:
            return self._name("engine", inside)
        if "://" in inside:
            return self._in_text(inside)
        return self._name("path" if "/" in inside else "text", inside)


def _pattern(known: Iterable[str]) -> re.Pattern[str]:
    """What is replaced in a text; the first that fits at a place counts, and of the known words the longest."""
    words = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    learned = [rf"(?P<known>(?<![\w-])(?i:{words})(?![\w-]))"] if words else []
    patterns = [_COMMAND, _SECRET, _BOOT, _URL, *learned, _QUOTED, _MAIL, _PATH, _ON, _PIDS, _IP, _ID]
    return re.compile("|".join(patterns), re.DOTALL)


def redacted(entries: Iterable[Entry]) -> list[Entry]:
    """The entries of a journal without what names a machine or a person."""
    given = list(entries)
    redaction = Redaction(given)
    return [redaction.of(entry) for entry in given]
