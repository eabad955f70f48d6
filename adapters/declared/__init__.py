"""An engine that is reached by verbs, of which a user declares what they do: an object's methods, an actor's, an RPC's.

    from lifecycle import Engine, Fleet
    from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs

    verbs = Verbs(
        pause={"abort": Verb(call=actor.pause_generation, repeatable=True)},
        resume=actor.continue_generation,
        release=Verb(call=actor.release_memory_occupation, effects={"weights": "discarded", "kv_cache": "discarded"}),
        restore=Verb(call=actor.resume_memory_occupation, effects={"weights": "resident", "kv_cache": "resident"}),
        drop_cache=actor.flush_cache,
        ...
    )
    engine = Engine(DeclaredAdapter("actor:policy-0", verbs, processes=pids, about=About(device="cuda")))

What is not declared is not had. A fact that no question reads is known by what was acknowledged, at best.
"""

from .adapter import DeclaredAdapter
from .declaration import About, Verbs
from .verbs import InWords, NotCalled, Succeeded, TagEffect, Verb, did

__all__ = ["About", "DeclaredAdapter", "InWords", "NotCalled", "Succeeded", "TagEffect", "Verb", "Verbs", "did"]
