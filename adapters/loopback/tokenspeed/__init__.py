"""tokenspeed's dialect: what the control server of tokenspeed 0.1.1 answers, its pauses, and its releases by tag.

Read in the released package; its control routes and controllers were run with its real scheduler beside this one
(tests/real/run_tokenspeed.py). It differs from a real tokenspeed in these points, beside those in which the loopback
engine differs from any engine:

- control server, gateway, RL control app and front end are one process, whose scheduler's ranks are others;
- there is no gateway: `/generate` answers itself, in SGLang's shape, with no OpenAI endpoint;
- weights come from a folder of checkpoints (`--weight-store`), `/update_weights_from_mooncake` naming the file: no
  trainer's process group can be joined;
- a forward pass or a load over memory that was released ends the engine, as an illegal access on a GPU would;
- experts are rebalanced for as long as `--rebalance-s` says, and nothing is moved by it.
"""
