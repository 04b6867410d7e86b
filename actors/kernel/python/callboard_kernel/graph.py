"""Which names belong together.

Names that reach a common mutable object form one group, so that one pickle keeps what they share.
A class of the session is not such an object for its instances: other groups refer to it by the
name that is bound to it, so that thousands of instances in unrelated variables do not become one
group with the class, and there is still one class after a restore. Where such references run in a
circle, the circle is one group; so every restore order that follows them ends.
"""

from __future__ import annotations

from typing import Iterable, Mapping


def partition(
    reached: Mapping[str, Iterable[int]], classes: Mapping[str, Iterable[str]]
) -> list[list[str]]:
    """Splits the names into groups, each sorted, in order of their first names.

    `reached` gives the ids of the mutable objects of each name, `classes` the names of the session
    classes each name refers to.
    """
    parent = {name: name for name in reached}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first_owner: dict[int, str] = {}
    for name, ids in reached.items():
        for key in ids:
            owner = first_owner.setdefault(key, name)
            if owner is not name:
                parent[find(name)] = find(owner)
    edges: dict[str, set[str]] = {}
    for name, targets in classes.items():
        for target in targets:
            if target in parent and find(target) != find(name):
                edges.setdefault(find(name), set()).add(find(target))
    for circle in _circles(edges):
        for name in circle[1:]:
            parent[find(name)] = find(circle[0])
    groups: dict[str, list[str]] = {}
    for name in reached:
        groups.setdefault(find(name), []).append(name)
    return sorted(sorted(group) for group in groups.values())


def _circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for root in edges:
        if root in index:
            continue
        work = [(root, iter(sorted(edges.get(root, ()))))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(sorted(edges.get(target, ())))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    if len(component) > 1:
                        found.append(component)
    return found


def sharing(members: list[str], reached: Mapping[str, Mapping[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Which places of the members' pickles are the same object.

    Two captures with equal pickles per member and equal sharing have equal joint pickles.
    """
    places: dict[int, list[int]] = {}
    for position, name in enumerate(members):
        for key, place in reached[name].items():
            places.setdefault(key, []).extend((position, place))
    return tuple(sorted(tuple(place) for place in places.values() if len(place) > 2))
