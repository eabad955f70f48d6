"""SGLang's dialect: the HTTP API of sglang 0.5.23, its scheduler's pauses, and the assertions on which it exits.

It differs from sglang 0.5.23 in these points, beside those in which the loopback engine differs from any engine:

- `/update_weights_from_tensor` takes safetensors blobs in base64 (`load_format: "safetensors"`), not pickled torch
  handles, and there is no `/update_weights_from_distributed`;
- released memory reads as zeros and can be written, and the resume discards what was written; a GPU would fault;
- the prefill and decode modes are only reported;
- `/v1/loads` is updated after every step; SGLang's may be some steps behind.
"""
