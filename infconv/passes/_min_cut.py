"""A cheapest cut of a directed graph, by Dinic's algorithm (E. A. Dinic, Soviet Math. Doklady 11, 1970)."""

from __future__ import annotations

from collections import deque

INFINITE = 1 << 120
"""More than any sum of capacities."""


class Network:
    """Vertices are numbers; vertex 0 is the source, vertex 1 the sink."""

    def __init__(self) -> None:
        self._heads: list[int] = []
        self._room: list[int] = []
        self._edges: list[list[int]] = [[], []]
        """The edges of a vertex; edge e ^ 1 is the way back of edge e."""

    def vertex(self) -> int:
        """Add a vertex and return it."""
        self._edges.append([])
        return len(self._edges) - 1

    def connect(self, a: int, b: int, capacity: int, back: int = 0) -> None:
        """Add an edge from a to b, and one `back`."""
        for tail, head, room in ((a, b, capacity), (b, a, back)):
            self._edges[tail].append(len(self._heads))
            self._heads.append(head)
            self._room.append(room)

    def source_side(self) -> set[int]:
        """Return the vertices on the source's side of a cheapest cut, the fewest that there may be."""
        while True:
            levels = self._levels()
            if 1 not in levels:
                return set(levels)
            self._block(levels)

    def _levels(self) -> dict[int, int]:
        """Return the distance from the source of each vertex that can still be reached."""
        levels, queue = {0: 0}, deque([0])
        while queue:
            vertex = queue.popleft()
            for edge in self._edges[vertex]:
                head = self._heads[edge]
                if self._room[edge] and head not in levels:
                    levels[head] = levels[vertex] + 1
                    queue.append(head)
        return levels

    def _block(self, levels: dict[int, int]) -> None:
        """Send as much as possible along paths on which the level rises with each step."""
        position = [0] * len(self._edges)
        path: list[int] = []
        while True:
            vertex = self._heads[path[-1]] if path else 0
            if vertex == 1:
                self._send(path)
                path.clear()
                continue
            edge = self._next(vertex, levels, position)
            if edge is not None:
                path.append(edge)
            elif path:
                position[self._heads[path.pop() ^ 1]] += 1
            else:
                return

    def _next(self, vertex: int, levels: dict[int, int], position: list[int]) -> int | None:
        """Return the first edge from `position` on that leads to the next level and has room."""
        edges = self._edges[vertex]
        while position[vertex] < len(edges):
            edge = edges[position[vertex]]
            if self._room[edge] and levels.get(self._heads[edge]) == levels[vertex] + 1:
                return edge
            position[vertex] += 1
        return None

    def _send(self, path: list[int]) -> None:
        amount = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= amount
            self._room[edge ^ 1] += amount
