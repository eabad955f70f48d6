"""vLLM's dialect: the HTTP API of vLLM's releases 0.24 to 0.33 in development mode, its pauses, and its sleep.

Observed on a live 0.32.0 server, and read in the released packages of each version, which the modules name. It differs
from a real vLLM in these points, beside those in which the loopback engine differs from any engine:

- a forward pass, a reload or a push over memory that sleeps fails, and ends the engine at the next forward pass at the
  latest, as an illegal access on a GPU would (read in the source; `--cpu-like` is what was observed: nothing sleeps);
- the weights of sleep level 2 come back as zeros;
- weight transfer takes pushed safetensors (`--weight-transfer`), not NCCL, IPC or RDMA handles;
- one engine core steps where real data-parallel cores run dummy batches with each other;
- the server ends `--death-delay-s` after its engine core (5 s and more in vLLM, which asks every 5 s).
"""
