"""slime's RolloutServer over its own groups and actors: the bodies of three methods are replaced, and are proved."""

from functools import partial

from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs

from lifecycle import Engine
from lifecycle.frameworks import slime


def engine_of(actor, policy=None, device="cuda", tags=("weights", "kv_cache")):
    verbs = Verbs(
        pause={"abort": Verb(call=actor.pause_generation, repeatable=True)},
        idle=Verb(call=actor.flush_cache, drops_cache=True),
        release=Verb(call=actor.release_memory_occupation, effects=dict.fromkeys(tags, "discarded")),
        restore=Verb(call=actor.resume_memory_occupation, effects=dict.fromkeys(tags, "resident")),
        push={"tensor": actor.update_weights_from_tensor},
        drop_cache=actor.flush_cache,
        resume=Verb(call=actor.continue_generation, repeatable=True),
        answer=lambda: "a token" if actor.health_generate() else "",
        label=actor.get_weight_version,
        barrier=actor.get_url,
    )
    url, about = actor.get_url(), About(engine="slime", device=device)
    return Engine(DeclaredAdapter(f"slime:{url}", verbs, processes=url, about=about), policy=policy)


def rollout_server(server_groups, **options):
    return slime.RolloutServer.of(server_groups, partial(engine_of, **options), by="slime, which started it")
