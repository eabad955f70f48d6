"""Drives engines that live in Ray actors, over handles that a framework has created already.

    from lifecycle import Engine, Fleet
    from lifecycle.adapters.ray import MILES, SLIME, RayActors

    engines = [Engine(RayActors(actor, SLIME), name=f"policy-{number}") for number, actor in enumerate(actors)]
    async with Fleet(engines) as fleet: ...

An engine of several nodes is a list of its actors, node 0 first. What a method is called, and what it does, stands in a
map of methods (`Methods`); those of slime and miles are ready. Ray is imported where handles are given, and not before.
Source for every claim about Ray here: ray 2.60.0, run (tests/ray).
"""

from .adapter import RayActors
from .agents import Agents, agents_on
from .driver import Drivers, drivers_on
from .handles import actor_named
from .methods import MILES, SLIME, Method, Methods
from .on_node import OnNode

__all__ = [
    "MILES",
    "SLIME",
    "Agents",
    "Drivers",
    "Method",
    "Methods",
    "OnNode",
    "RayActors",
    "actor_named",
    "agents_on",
    "drivers_on",
]
