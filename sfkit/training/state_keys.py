"""Names in the handle's state that are no attributes of the handle."""

from __future__ import annotations


class StateKeyProxy:
    """Stands where torch looks a key of a state up as a path of attributes, which it does to gather FSDP2's parts."""

    def __getattr__(self, name: str) -> StateKeyProxy:
        if name.startswith("_"):
            raise AttributeError(name)
        return self
