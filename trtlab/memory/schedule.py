"""Which layers can run at the same time? Those that neither their stream nor an event puts in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trtlab.engine import Layer

_MOST_MOMENTS = 5000  # with many independent streams there are too many to look at all


class Schedule:
    """The order in which a GPU must run layers: one after the other in a stream, and a `wait` after its `signal`.

    `clocks[place]` says for each stream which of its layers have surely begun when the layer at `place` does, as the
    vector clocks of Fidge 1988 do.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.streams = [layer.stream for layer in layers]
        self.clocks: list[dict[int, int]] = []
        self.lanes: dict[int, list[int]] = {}
        latest: dict[int, dict[int, int]] = {}
        signals: dict[int | None, dict[int, int]] = {}
        for place, layer in enumerate(layers):
            clock = dict(latest.get(layer.stream, {}))
            for stream, other in signals.get(layer.event, {}).items() if layer.type == "wait" else ():
                clock[stream] = max(other, clock.get(stream, -1))
            clock[layer.stream] = place
            latest[layer.stream] = clock
            if layer.type == "signal":
                signals[layer.event] = clock
            self.clocks.append(clock)
            self.lanes.setdefault(layer.stream, []).append(place)

    def before(self, first: int, second: int) -> bool:
        """True when the layer at place `first` has surely ended before the one at `second` begins."""
        return first != second and self.clocks[second].get(self.streams[first], -1) >= first

    def moments(self) -> Iterator[tuple[set[int], dict[int, int]]]:
        """Every moment that a GPU may come to: the places running, and per stream the last place that has ended.

        With too many moments to go through, those of running the layers one by one in their order.
        """
        found = self._all_moments() if len(self.lanes) > 1 else []
        if found:
            yield from found
            return
        ended: dict[int, int] = {}
        for place, stream in enumerate(self.streams):
            yield {place}, dict(ended)
            ended[stream] = place

    def _all_moments(self) -> list[tuple[set[int], dict[int, int]]]:
        """Breadth first over what has begun (a state: how many layers of each stream); none when they are too many."""
        found, streams = [], sorted(self.lanes)
        states = [(0,) * len(streams)]
        seen = set(states)
        while states:
            if len(seen) > _MOST_MOMENTS:
                return []
            state = states.pop(0)
            begun = {
                stream: self.lanes[stream][count - 1] for stream, count in zip(streams, state, strict=True) if count
            }
            found.append(self._moment(begun))
            for index, stream in enumerate(streams):
                following = (*state[:index], state[index] + 1, *state[index + 1 :])
                if state[index] < len(self.lanes[stream]) and following not in seen:
                    needs = self.clocks[self.lanes[stream][state[index]]]
                    if all(begun.get(other, -1) >= place for other, place in needs.items() if other != stream):
                        seen.add(following)
                        states.append(following)
        return found

    def _moment(self, begun: dict[int, int]) -> tuple[set[int], dict[int, int]]:
        """The last layer begun in each stream runs, unless another one that runs had to wait for its end."""
        running = {place for place in begun.values() if not any(self.before(place, other) for other in begun.values())}
        ended = {}
        for stream, place in begun.items():
            lane = self.lanes[stream]
            done = lane.index(place) - (place in running)
            if done >= 0:
                ended[stream] = lane[done]
        return running, ended
