"""The lifecycle under the verbs that frameworks call: slime's and miles' RolloutServer, and the resizing of rlix.

    from lifecycle.frameworks.slime import RolloutServer      # blocking
    from lifecycle.frameworks.miles import RolloutServer      # awaited, with tags and mode="retract"
    from lifecycle.frameworks.rlix import RolloutManager      # shrink_engines, expand_engines, resize_infer

A framework keeps its groups of engines, and calls these where it made a list of remote calls.
"""
