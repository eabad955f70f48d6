"""The protocol as a Promela model for SPIN, generated from the table: a second opinion that shares no code.

What a row says is taken from `lifecycle.rules.table`: source, transient state, destination, guards and proofs by name.
What it *means* is written here, on its own: which calls a command sends (`CALLS`), what a call does to an engine (in
the model), what each guard knows (`GUARDS`) and each proof sees (`PROOFS`). A row, a guard or a proof that has no
meaning here raises KeyError, so the table cannot grow past the model.

The model: one engine with two tags, two drivers that share a store and its leases, clients, and a network. A call is
done, lost before or after it took effect, answered without effect, or takes effect late; a driver may be killed between
any two steps and begin anew. The engine asserts what a real one dies of, and what it must not serve.

Not in it: time (a deadline is a step that may come at any moment), other actors, bytes but for which tags they show,
`Kept` weights, several engines. A flush that is answered is taken to have flushed: nothing an engine reports shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.core.states import State
from lifecycle.rules.table import OPERATIONS, Operation

#: The calls of each command, in order.
CALLS: dict[str, tuple[str, ...]] = {
    "pause": ("CLOSE",),
    "drain": (),
    "release": ("UNMAP_KV", "UNMAP_WEIGHTS"),
    "restore_weights": ("MAP_WEIGHTS",),
    "update_weights": ("LOAD", "FLUSH"),
    "restore_kv": ("MAP_KV", "FLUSH"),
    "resume": ("OPEN",),
}

#: The one thing that a call changes, of what a driver knows; what it is afterwards.
CHANGES: dict[str, tuple[str, int]] = {
    "CLOSE": ("k_open", 0),
    "OPEN": ("k_open", 1),
    "UNMAP_KV": ("k_kv", 0),
    "UNMAP_WEIGHTS": ("k_weights", 0),
    "MAP_WEIGHTS": ("k_weights", 1),
    "MAP_KV": ("k_kv", 1),
    "LOAD": ("k_valid", 1),
    "FLUSH": ("k_fresh", 1),
}

#: What a guard asks of what is known (0 no, 1 yes, 2 unknown), or of the engine just now.
GUARDS: dict[str, str] = {
    "still_idle": "running == 0",
    "all_mapped": "k_weights == 1 && k_kv == 1",
    "weights_valid": "k_valid == 1",
    "cache_fresh": "k_fresh == 1",
    "mapping_borne_out": "k_weights == 2 || k_kv == 2 || borne_out()",
    "live_update_supported": "false",
    # What follows is of the device, the launch or the request, and is taken to hold.
    **dict.fromkeys(
        (
            "mode_supported",
            "derouted",
            "mode_change_safe",
            "mode_drains",
            "memory_saver_enabled",
            "hook_mode_safe",
            "tags_releasable",
            "weights_recoverable",
            "bytes_visible",
            "host_has_room",
            "cotenants_within_budget",
            "device_has_room",
            "source_ready",
        ),
        "true",
    ),
}

#: What a proof sees of the engine.
PROOFS: dict[str, str] = {
    "admission_closed": "!open",
    "idle": "running == 0",
    "tags_unmapped": "!weights && !kv",
    "memory_returned": "!weights && !kv",
    "weights_mapped": "weights",
    "kv_mapped": "kv",
    "weights_match": "weights && valid",
    "cache_fresh": "fresh",
    "answers": "open && weights && kv && valid && fresh",
}

#: On the way home, in which cases a driver gives this command (`lifecycle.rules.planner` for what is known).
HOME: dict[tuple[str, State], str] = {
    ("drain", State.PAUSED): "k_valid != 1 || k_fresh != 1",
    ("restore_weights", State.RELEASED): "true",
    ("update_weights", State.WEIGHTS_RESTORED): "k_valid != 1",
    ("update_weights", State.DRAINED): "k_valid != 1 || k_fresh != 1",
    ("restore_kv", State.WEIGHTS_RESTORED): "k_valid == 1",
    ("resume", State.KV_RESTORED): "true",
    ("resume", State.DRAINED): "k_valid == 1 && k_fresh == 1",
    ("resume", State.PAUSED): "k_valid == 1 && k_fresh == 1",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may happen: calls with another fate than done, kills of a driver, commands before the way home.

    `death`: the engine may die at any moment. `bytes_tell`: the sizes of the tags differ, so bytes say which is mapped.
    `dead_ends`: an engine of which two truths fit what is seen counts as brought as far as it goes.
    """

    faults: int = 2
    kills: int = 1
    commands: int = 6
    drivers: int = 2
    death: bool = False
    bytes_tell: bool = True
    dead_ends: bool = True


#: Faults of the protocol that can be put in: what is taken out of the model, by name.
FAULTS = ("no barrier", "no lease", "no proof", "no guard", "no doubt")


def promela(bounds: Bounds, fault: str = "", operations: Sequence[Operation] = OPERATIONS) -> str:
    """The model, with one of `FAULTS` in it where one is named."""
    if fault and fault not in FAULTS:
        raise ValueError(f"{fault!r}: one of {', '.join(FAULTS)}")
    states = "\n".join(f"#define {state.name} {number}" for number, state in enumerate(State))
    calls = "\n".join(f"#define {call} {number}" for number, call in enumerate(CHANGES, 1))
    rows = "\n".join(_row(each, fault) for each in operations if "false" not in _guards(each, fault))
    return _MODEL.format(
        states=states,
        calls=calls,
        rows=rows,
        interrupted="\n".join(
            f"                :: state == {via.name} ->{'' if fault == 'no doubt' else doubts} skip"
            for via, doubts in {each.via: _doubted(each) for each in operations}.items()
        ),
        knows="\n".join(f"    :: c == {call} -> {fact} = {value}" for call, (fact, value) in CHANGES.items()),
        doubts="\n".join(f"    :: c == {call} -> {fact} = 2" for call, (fact, _) in CHANGES.items()),
        faults=bounds.faults,
        kills=bounds.kills,
        commands=bounds.commands,
        drivers="\n".join(f"    run Driver({number});" for number in range(1, bounds.drivers + 1)),
        death="    :: alive -> alive = 0; break\n" if bounds.death else "",
        bytes_tell=int(bounds.bytes_tell),
        dead_ends=int(bounds.dead_ends),
        barrier="skip" if fault == "no barrier" else "(late == NO_CALL || !alive)",
        lease="true" if fault == "no lease" else "lease == 0",
    )


def _guards(each: Operation, fault: str) -> list[str]:
    asked = ["true"] if fault == "no guard" else [GUARDS[guard.name] for guard in each.guards]
    return asked or ["true"]


def _row(each: Operation, fault: str) -> str:
    """One row: claim, calls, proofs, destination. Where a call or proof fails, the driver finds out where it is."""
    asked = " && ".join(f"({guard})" for guard in dict.fromkeys(_guards(each, fault)) if guard != "true") or "true"
    seen = "true" if fault == "no proof" else " && ".join(f"({PROOFS[proof.name]})" for proof in each.proofs)
    home = HOME.get((each.command, each.source), "false")
    sends = "".join(f"            {_sent(call)};\n" for call in CALLS[each.command])
    waits = (
        "            atomic { running == 0 || !alive -> fresh = 1; k_fresh = 1 };  /* asked by a flush */\n"
        if each.command == "drain"
        else ""
    )
    return (
        f"        :: state == {each.source.name} && (!home || ({home})) && {asked} ->  /* {each.command} */\n"
        f"            state = {each.via.name}; ok = 1; free = 0;\n{sends}{waits}"
        f"            if\n"
        f"            :: ok && alive && {seen} -> atomic {{ state = {each.dest.name}; free = (state == RELEASED) }}\n"
        f"            :: else -> atomic {{ state = FAILED;{_doubted(each)} }}\n"
        f"            fi\n"
    )


def _doubted(each: Operation) -> str:
    """What its calls change is unknown where the proofs did not show it: an answer alone proves nothing."""
    return "".join(f" {CHANGES[call][0]} = 2;" for call in CALLS[each.command])


def _sent(call: str) -> str:
    """The call; where it maps or unmaps what is known to be so already, it is left out."""
    fact, value = CHANGES[call]
    return f"if :: {fact} == {value} -> skip :: else -> call({call}) fi" if "MAP" in call else f"call({call})"


_MODEL = """/* Generated from lifecycle.rules.table by tests/model_check/spin_model.py; do not edit. */
{states}

#define NO_CALL 0
{calls}

/* The engine, as it is. */
bool open = 1, weights = 1, kv = 1, valid = 1, fresh = 1, alive = 1;
byte running = 0;
byte late = NO_CALL;

/* The record, kept in the store: 0 no, 1 yes, 2 unknown. An intent is open from before a call until it was answered. */
byte state = SERVING;
byte k_open = 1, k_weights = 1, k_kv = 1, k_valid = 1, k_fresh = 1;
bool open_intent = 0;
byte lease = 0, last = 1;

byte faults = {faults}, kills = {kills}, commands = {commands};
bool home = 0, dead_end = 0, free = 0;
byte inside = 0;

/* What is believed to be mapped is what the bytes say. */
#define borne_out() ({bytes_tell} -> k_weights == weights && k_kv == kv : k_weights + k_kv == weights + kv)

/* What a call does to an engine, and what it dies of. */
inline effect(c) {{
    if
    :: !alive -> skip
    :: alive && c == CLOSE -> open = 0
    :: alive && c == OPEN -> assert(weights && kv && valid && fresh); open = 1
    :: alive && c == UNMAP_KV -> assert(!open && running == 0); assert(kv); kv = 0; fresh = 0
    :: alive && c == UNMAP_WEIGHTS -> assert(!open && running == 0); assert(weights); weights = 0; valid = 0
    :: alive && c == MAP_WEIGHTS -> assert(!weights); weights = 1; valid = 0
    :: alive && c == MAP_KV -> assert(!kv); kv = 1; fresh = 1
    :: alive && c == LOAD -> assert(weights); valid = 1; fresh = 0
    :: alive && c == FLUSH -> fresh = 1
    fi
}}

inline know(c) {{
    if
{knows}
    fi;
    if
    :: c == LOAD -> k_fresh = 0
    :: c == MAP_KV -> k_fresh = 1
    :: c == UNMAP_WEIGHTS || c == MAP_WEIGHTS -> k_valid = 0
    :: else -> skip
    fi
}}

inline doubt(c) {{
    if
{doubts}
    fi;
    if
    :: c == UNMAP_KV || c == MAP_KV || c == LOAD -> k_fresh = 0
    :: else -> skip
    fi;
    if
    :: c == UNMAP_WEIGHTS || c == MAP_WEIGHTS -> k_valid = 0
    :: else -> skip
    fi
}}

/* One call: the intent is kept, then it is sent, then what it came to is known. After one that failed none is sent. */
inline call(c) {{
    if
    :: !ok -> skip
    :: ok ->
        atomic {{ doubt(c); open_intent = 1 }};
        if
        :: kills > 0 -> atomic {{ kills--; goto killed }}
        :: true
        fi;
        if
        :: atomic {{ late == NO_CALL -> effect(c) }}; answered = 1
        :: faults > 0 -> atomic {{ faults--; late == NO_CALL -> effect(c); answered = 0 }}
        :: faults > 0 -> atomic {{ faults--; answered = 0 }}
        :: faults > 0 && c != FLUSH -> atomic {{ faults--; answered = 1 }}  /* answered, and nothing done */
        :: faults > 0 -> atomic {{ faults--; late == NO_CALL -> late = c; answered = 0 }}
        fi;
        if
        :: kills > 0 -> atomic {{ kills--; goto killed }}
        :: true
        fi;
        if
        :: answered -> atomic {{ know(c); open_intent = 0 }}
        :: else -> ok = 0
        fi
    fi
}}

/* What was sent before cannot take effect any more; then the engine is looked at, and its bytes are read. */
inline observe() {{
    {barrier};
    atomic {{
        open_intent = 0;
        k_open = open;
        if
        :: {bytes_tell} || weights == kv -> k_weights = weights; k_kv = kv
        :: else ->  /* one of two tags of one size is mapped: where one is known, so is the other */
            if
            :: k_weights != 2 && k_kv == 2 -> k_kv = 1 - k_weights
            :: k_weights == 2 && k_kv != 2 -> k_weights = 1 - k_kv
            :: k_weights != 2 && k_kv != 2 && k_weights + k_kv == 1 -> skip
            :: else -> k_weights = 2; k_kv = 2
            fi
        fi;
        if
        :: k_weights == 0 -> k_valid = 0
        :: else -> skip
        fi;
        if
        :: !alive -> state = GONE
        :: alive && k_open == 1 && k_weights == 1 && k_kv == 1 && k_valid == 1 && k_fresh == 1 -> state = SERVING
        :: alive && k_open == 1 && !(k_weights == 1 && k_kv == 1 && k_valid == 1 && k_fresh == 1) -> state = FAILED
        :: alive && k_open == 0 && k_weights == 1 && k_kv == 1 ->
            if
            :: running == 0 && (k_fresh == 1 || k_valid != 1) -> state = DRAINED
            :: else -> state = PAUSED
            fi
        :: alive && k_open == 0 && (k_weights == 2 || k_kv == 2) -> state = FAILED; dead_end = home
        :: alive && k_open == 0 && k_weights == 1 && k_kv == 0 -> state = (running == 0 -> WEIGHTS_RESTORED : FAILED)
        :: alive && k_open == 0 && k_weights == 0 -> state = (running == 0 -> RELEASED : FAILED)
        fi;
        free = (state == RELEASED && k_weights == 0 && k_kv == 0)
    }}
}}

proctype Driver(byte me) {{
    bool ok, answered;
    do
    :: atomic {{ {lease} && alive && (state != SERVING || !home) && !dead_end -> lease = me; inside++ }};
        assert(inside == 1);
        if
        :: last != me || open_intent || (state != SERVING && state != PAUSED && state != DRAINED && state != RELEASED
            && state != WEIGHTS_RESTORED && state != KV_RESTORED) ->
            atomic {{
                if  /* what an interrupted command was to prove is unknown */
{interrupted}
                :: else -> skip
                fi
            }};
            observe();
            if
            :: state == FAILED && k_open == 1 -> ok = 1; call(CLOSE); observe()
            :: else -> skip
            fi
        :: else -> skip
        fi;
        last = me;
        if
{rows}
        :: else -> skip
        fi;
        atomic {{
            if
            :: commands > 0 -> commands--
            :: else -> home = 1
            fi;
            inside--; lease = 0
        }}
    :: atomic {{ home && (state == SERVING || dead_end) || !alive }} -> break
    od;
    goto done;
killed:
    atomic {{ inside--; lease = 0; last = 0 }};
    run Driver(me);
done:
    skip
}}

/* Requests: admitted while it is open, and ended some time. */
active proctype Clients() {{
    do
    :: atomic {{ open && alive && running == 0 && !home -> running = 1 }}
    :: atomic {{ running > 0 -> running = 0 }}
    :: home && running == 0 && state == SERVING -> break
    :: dead_end || !alive -> break
    od
}}

/* What was sent takes effect, in the end; and the engine may die. */
active proctype Network() {{
    do
    :: atomic {{ late != NO_CALL -> effect(late); late = NO_CALL }}
    :: late == NO_CALL && home && (state == SERVING || dead_end) -> break
{death}    :: !alive -> break
    od
}}

init {{
    atomic {{
{drivers}
    }}
}}

ltl comes_home {{ [] (home -> <> (state == SERVING || ({dead_ends} && dead_end))) }}
ltl released {{ [] (alive -> ((state == RELEASED -> !weights) && (free -> !weights && !kv))) }}
ltl serving {{ [] ((alive && state == SERVING) -> (weights && kv && valid && fresh)) }}
"""
