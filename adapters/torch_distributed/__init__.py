"""Ranks of a torch.distributed job that agree through its store."""

from .agreement import StoreAgreement

__all__ = ["StoreAgreement"]
