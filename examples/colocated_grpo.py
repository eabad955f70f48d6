"""A policy that learns: rollouts, training and the weight push take turns on one device, in one process.

    python examples/colocated_grpo.py --steps 20            # --device cuda, --seed N, --no-push

A step: the engine generates and releases its memory, the trainer restores its own and makes one GRPO step, the trainer
releases everything but its parameters, and the engine restores its memory and receives those parameters by a push.
Without the push the engine goes on generating with its first weights, and the reward does not rise.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lifecycle.adapters.torch_memory_saver import TorchEngine, Trainer

from lifecycle import Engine, Fleet, Kept, Policy, Pushed, Source

MIB = 1 << 20
VOCABULARY, LENGTH, WIDTH = 10, 6, 64
#: Rows of the embedding table, as of a tokenizer's; the task uses VOCABULARY of them. It is most of the model: 8 MiB.
TABLE = 1 << 15
PROMPTS, GROUP = 16, 24
EPOCHS, LEARNING_RATE, CLIP = 2, 2e-3, 0.2
#: The mean reward of the last five steps must exceed that of the first five by this much; chance is 1 / VOCABULARY.
MARGIN = 0.3
POOL_BYTES = 32 * MIB
#: In a process with torch in it, what counts is the difference; 4 MiB can be seen.
HOLD = Policy(residual_threshold_gib=4.0, visible_bytes=4 * MIB, visible_fraction=0.001, poll_s=0.02)


class Actor(torch.nn.Module):
    """Token ids [batch, time] to logits [batch, time, VOCABULARY]: embeddings, one attention head, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(TABLE, WIDTH)
        self.place = torch.nn.Embedding(LENGTH, WIDTH)
        self.query, self.key, self.value = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.hidden = torch.nn.Linear(WIDTH, 16 * WIDTH)
        self.out = torch.nn.Linear(16 * WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the token after each."""
        x = self.token(ids) + self.place.weight[: ids.size(1)]
        mixed = torch.nn.functional.scaled_dot_product_attention(
            self.query(x)[:, None], self.key(x)[:, None], self.value(x)[:, None], is_causal=True
        )
        return self.out(torch.relu(self.hidden(x + mixed[:, 0])))

    def step(self, ids: torch.Tensor, time: int, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Logits after the tokens `ids` [batch] at `time`, whose keys and values go into the caches [batch, time]."""
        x = self.token(ids) + self.place.weight[time]
        keys[:, time], values[:, time] = self.key(x), self.value(x)
        scores = torch.einsum("bw,btw->bt", self.query(x), keys[:, : time + 1]) / WIDTH**0.5
        mixed = torch.einsum("bt,btw->bw", scores.softmax(-1), values[:, : time + 1])
        return self.out(torch.relu(self.hidden(x + mixed)))


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What was generated: ids with the prompt in front [batch, 1 + LENGTH], log probabilities and rewards [batch]."""

    ids: torch.Tensor
    log_probs: torch.Tensor
    rewards: torch.Tensor

    @property
    def advantages(self) -> torch.Tensor:
        """Each reward against those of the same prompt, in their standard deviations."""
        groups = self.rewards.view(PROMPTS, GROUP)
        return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1, 1)


class Rollout:
    """The engine: an actor, and a pool of keys and values, in regions of their own."""

    def __init__(self, device: str) -> None:
        self.engine = TorchEngine("rollout", device=device, policy=HOLD)
        with self.engine.region("weights"):
            self.actor = Actor().to(device)
        with self.engine.region("kv_cache"):
            self.pool = torch.zeros(2, POOL_BYTES // (2 * 4 * LENGTH * WIDTH), LENGTH, WIDTH, device=device)
        self.engine.attach(self.actor, generate=lambda probe: self.generate(torch.zeros(1))[0][0, 1:].tolist())

    @torch.no_grad()
    def generate(self, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sampled ids after prompts [batch], and their log probabilities [batch, LENGTH]."""
        with self.engine.gate.request():
            ids, log_probs = [prompts.long().to(self.pool.device)], []
            keys, values = self.pool[:, : len(prompts)]
            for time in range(LENGTH):
                logits = self.actor.step(ids[-1], time, keys, values)
                drawn = torch.multinomial(logits.softmax(-1), 1)
                log_probs.append(logits.log_softmax(-1).gather(1, drawn)[:, 0])
                ids.append(drawn[:, 0])
        return torch.stack(ids, 1), torch.stack(log_probs, 1)

    def rollouts(self) -> Rollouts:
        """GROUP answers to each of PROMPTS prompts; the reward is the share of the answer that repeats the prompt."""
        prompts = torch.randint(0, VOCABULARY, (PROMPTS,)).repeat_interleave(GROUP)
        ids, log_probs = self.generate(prompts)
        return Rollouts(ids, log_probs, (ids[:, 1:] == ids[:, :1]).float().mean(1))


class Learner:
    """The trainer: an actor with gradients and Adam's states, a tenant of the same device."""

    def __init__(self, device: str, start: Actor) -> None:
        self.actor = Actor().to(device)
        self.actor.load_state_dict(start.state_dict())
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=LEARNING_RATE, fused=True)
        self.tenant = Trainer("trainer", device=device, policy=HOLD)
        self.tenant.own(self.actor, self.optimizer)

    def learn(self, rollouts: Rollouts) -> None:
        """The actor has made EPOCHS steps of clipped policy gradient on these rollouts."""
        with self.tenant.step():
            for _ in range(EPOCHS):
                now = self.actor(rollouts.ids[:, :-1]).log_softmax(-1)
                ratio = (now.gather(2, rollouts.ids[:, 1:, None])[..., 0] - rollouts.log_probs).exp()
                gain = torch.minimum(ratio * rollouts.advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * rollouts.advantages)
                self.optimizer.zero_grad(set_to_none=False)
                (-gain.mean()).backward()
                self.optimizer.step()

    def weights(self, version: str) -> Source:
        """The push of this actor's weights."""

        async def push(engines: Sequence[Engine]) -> None:
            for engine in engines:
                await engine.push("tensors", tensors=dict(self.actor.named_parameters()))

        return Pushed(push, version)


async def train(steps: int, seed: int, *, push: bool = True, device: str = "cpu", verbose: bool = False) -> list[float]:
    """Trains for so many steps; returns the mean reward of each step's rollouts."""
    torch.manual_seed(seed)
    rollout = Rollout(device)
    learner = Learner(device, rollout.actor)
    rewards = []
    async with Fleet([rollout.engine, learner.tenant]) as fleet:
        await fleet.offload(engines=["trainer"], weights=Kept())
        for number in range(1, steps + 1):
            batch = await asyncio.to_thread(rollout.rollouts)
            rewards.append(batch.rewards.mean().item())
            source = learner.weights(f"step-{number}") if push else Kept()
            async with fleet.offloaded(engines=["rollout"], weights=source) as (released,):
                await fleet.onload(engines=["trainer"])
                await asyncio.to_thread(learner.learn, batch)
                await fleet.offload(["gradients", "optimizer"], engines=["trainer"], weights=Kept())
            if number == 1:
                gc.freeze()  # objects that live by now are no garbage: later releases collect the rest only
            if verbose:
                returned = (released.returned_bytes or 0) // MIB
                print(
                    f"step {number:3}  reward {rewards[-1]:.3f}  {returned} MiB given to the trainer  {rollout.engine}"
                )
    gc.unfreeze()
    return rewards


def gain(rewards: Sequence[float]) -> float:
    """By how much the mean of the last five exceeds that of the first five."""
    return sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5


def main() -> int:
    """Returns exit code 0 where the reward rose by the margin, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-push", action="store_true", help="the engine keeps the weights it began with")
    asked = parser.parse_args()
    rewards = asyncio.run(train(asked.steps, asked.seed, push=not asked.no_push, device=asked.device, verbose=True))
    rose = gain(rewards)
    print(f"the reward rose by {rose:.3f}, from {sum(rewards[:5]) / 5:.3f} to {sum(rewards[-5:]) / 5:.3f}")
    return 0 if rose >= MARGIN else 1


if __name__ == "__main__":
    raise SystemExit(main())
