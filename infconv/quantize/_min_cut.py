"""The cheapest two-colouring of a graph: a minimum cut, by Dinic's algorithm (1970)."""

from __future__ import annotations

from collections import deque

INFINITE = 1 << 60


class Network:
    """A flow network with integer capacities. Vertices 0 and 1 are the source and the sink."""

    SOURCE = 0
    SINK = 1

    def __init__(self) -> None:
        self._heads: list[int] = []
        self._capacity: list[int] = []
        self._edges: list[list[int]] = [[], []]

    def vertex(self) -> int:
        """Add a vertex."""
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, tail: int, head: int, capacity: int, back: int = 0) -> None:
        """Add an edge: cutting it costs `capacity` when `tail` is on the source's side and `head` on the sink's."""
        self._edges[tail].append(len(self._heads))
        self._heads.append(head)
        self._capacity.append(capacity)
        self._edges[head].append(len(self._heads))
        self._heads.append(tail)
        self._capacity.append(back)

    def differ(self, members: list[int], cost: int) -> None:
        """Charge `cost` once unless all `members` are on one side."""
        members = list(dict.fromkeys(members))
        if len(members) == 2:
            self.edge(members[0], members[1], cost, cost)
        elif len(members) > 2:
            first, last = self.vertex(), self.vertex()
            self.edge(first, last, cost)
            for member in members:
                self.edge(member, first, INFINITE)
                self.edge(last, member, INFINITE)

    def source_side(self) -> set[int]:
        """Return the vertices on the source's side of the minimum cut that has the most of them."""
        while True:
            levels = self._levels()
            if levels[self.SINK] < 0:
                break
            positions = [0] * len(self._edges)
            while self._augment(levels, positions):
                pass
        return set(range(len(self._edges))) - self._reaching_sink()

    def _levels(self) -> list[int]:
        levels = [-1] * len(self._edges)
        levels[self.SOURCE] = 0
        queue = deque([self.SOURCE])
        while queue:
            vertex = queue.popleft()
            for edge in self._edges[vertex]:
                head = self._heads[edge]
                if self._capacity[edge] and levels[head] < 0:
                    levels[head] = levels[vertex] + 1
                    queue.append(head)
        return levels

    def _augment(self, levels: list[int], positions: list[int]) -> bool:
        """Push flow along one shortest path, found without recursion; False when there is none."""
        path: list[int] = []
        vertex = self.SOURCE
        while vertex != self.SINK:
            edges = self._edges[vertex]
            while positions[vertex] < len(edges):
                edge = edges[positions[vertex]]
                if self._capacity[edge] and levels[self._heads[edge]] == levels[vertex] + 1:
                    path.append(edge)
                    vertex = self._heads[edge]
                    break
                positions[vertex] += 1
            else:
                if not path:
                    return False
                vertex = self._heads[path.pop() ^ 1]
                positions[vertex] += 1
        amount = min(self._capacity[edge] for edge in path)
        for edge in path:
            self._capacity[edge] -= amount
            self._capacity[edge ^ 1] += amount
        return True

    def _reaching_sink(self) -> set[int]:
        found = {self.SINK}
        queue = deque(found)
        while queue:
            for edge in self._edges[queue.popleft()]:
                tail = self._heads[edge]
                if self._capacity[edge ^ 1] and tail not in found:
                    found.add(tail)
                    queue.append(tail)
        return found
