"""Peak of what a step allocates, counted at torch's allocator.

torch's profiler is told of every allocation and release of the CPU allocator. What lives at an
instant is the sum of those since the step began: weights and the states of the optimizer are older
and are not in it. The gradients of weights are in it until they are taken out: a hook notes the
storage of each when it is complete, and the allocation that this storage was is left out for as
long as it lives. Not seen are buffers that libraries (MKL, oneDNN) take without asking torch, and
arrays of NumPy or Rust.
"""

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


class AllocationCount:
    """``start()`` before a step, ``stop()`` after it; ``peaks()`` in bytes.

    Args:
        parameters: Those that train.
    """

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self._gradients: dict[int, tuple[int, int]] = {}
        """Address of a gradient's storage by parameter, and when it was complete."""
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._note) for parameter in parameters
        ]

    def start(self) -> None:
        """From here on; what lives already is not counted."""
        self._profile.start()

    def stop(self) -> None:
        """To here."""
        self._profile.stop()
        for hook in self._hooks:
            hook.remove()

    def peaks(self) -> dict[str, int]:
        """``peak`` without gradients of weights, ``with_gradients`` all that lived at once."""
        events = self._events()
        gradients = self._gradient_spans(events)
        live = peak = everything = taken = largest = 0
        for place, (_, _, size) in enumerate(events):
            everything += size
            taken += gradients.get(place, 0)
            live = everything - taken
            peak, largest = max(peak, live), max(largest, everything)
        return {
            "peak": peak,
            "with_gradients": largest,
            "gradients": sum(size for size in gradients.values() if size > 0),
            "events": len(events),
        }

    def _note(self, parameter: Any) -> None:
        address = parameter.grad.untyped_storage().data_ptr()
        self._gradients[id(parameter)] = (address, time.time_ns())

    def _events(self) -> list[tuple[int, int, int]]:
        """(nanoseconds, address, bytes), negative where they are released."""
        result = self._profile.profiler
        assert result is not None
        waiting = list(result.kineto_results.experimental_event_tree())
        found = []
        while waiting:
            event = waiting.pop()
            waiting += event.children
            kind, fields = event.typed
            if kind.name == "Allocation":
                found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
        return sorted(found, key=lambda event: event[0])

    def _gradient_spans(self, events: list[tuple[int, int, int]]) -> dict[int, int]:
        """Sizes of the events that begin and end a gradient, by their place."""
        complete = dict(self._gradients.values())
        begun: dict[int, int] = {}
        spans: dict[int, int] = {}
        for place, (when, address, size) in enumerate(events):
            if address not in complete:
                continue
            if size > 0:
                begun[address] = place
            elif address in begun:
                first = begun.pop(address)
                if events[first][0] <= complete[address] <= when:
                    spans[first], spans[place] = -size, size
        for address, first in begun.items():
            if events[first][0] <= complete[address]:
                spans[first] = events[first][2]
        return spans
