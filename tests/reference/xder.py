"""X-DER step by step: rows, heads and anchors one after the other, heads as lists of labels."""

import torch
from torch import Tensor


def head(z: Tensor, labels) -> list[Tensor]:
    """The outputs of one row that belong to some labels."""
    return [z[label] for label in labels]


def largest(values: list[Tensor]) -> Tensor:
    best = values[0]
    for value in values[1:]:
        if value > best:
            best = value
    return best


def attenuate(u: list[float], g: float, gamma: float, rule: str) -> list[float]:
    top = max(u)
    if rule == "code":
        return [value * (gamma * g / top) for value in u] if top > g else list(u)
    return [value * min(gamma * g / top, 1.0) for value in u]


def implanted(stored: Tensor, z: Tensor, y: int, labels: list[int], gamma: float, rule: str) -> Tensor:
    new = stored.clone()
    written = attenuate([float(v) for v in head(z, labels)], float(stored[y]), gamma, rule)
    for label, value in zip(labels, written, strict=True):
        new[label] = value
    return new


def cross_entropy(z: Tensor, y: int, labels) -> Tensor:
    total = sum(torch.exp(value) for value in head(z, labels))
    return torch.log(total) - z[y]


def violations(values: list[Tensor]) -> Tensor:
    positive = [value for value in values if value > 0]
    return sum(positive) / len(positive) if positive else torch.zeros(())


def supervised_contrastive(views: list[list[Tensor]], y: list[int], tau: float) -> Tensor:
    """Sum over samples of the mean over their views; views[i] holds those of sample i."""
    flat = [(i, v / v.norm()) for i, mine in enumerate(views) for v in mine]
    total = torch.zeros(())
    for sample, mine in enumerate(views):
        losses = []
        for place, (i, anchor) in enumerate(flat):
            if i != sample:
                continue
            s = {q: anchor @ other / tau for q, (_, other) in enumerate(flat) if q != place}
            positives = [q for q in s if y[flat[q][0]] == y[sample]]
            normaliser = torch.log(sum(torch.exp(value) for value in s.values()))
            losses.append(-sum(s[q] - normaliser for q in positives) / len(positives))
        total = total + sum(losses) / len(mine)
    return total


def distance(z: Tensor, stored: Tensor) -> Tensor:
    def gram(rows):
        g = [[a @ b for b in rows] for a in rows]
        return [[value / sum(abs(v) for v in line) for value in line] for line in g]

    a, b, n = gram(z), gram(stored), len(z)
    return sum((a[i][j] - b[i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def terms(net, x, y, tasks, t, s, first=None, second=None, third=None, view=None):
    """Loss of one step by term.

    Args:
        tasks: labels of each task. t: the present one. s: settings by name.
        first, second, third: memory draws, dicts of slots, x, y and logits, or None.
        view: of raw rows, with `augmentations` copies of each beside each other.
    """
    past = [label for labels in tasks[:t] for label in labels]
    present, coming = list(tasks[t]), tasks[t + 1 :]
    future = [label for labels in coming for label in labels]
    z, y = net(x), y.tolist()
    c, n = z.shape[1], len(y)
    found = {"stream": sum(cross_entropy(z[i], y[i], present) for i in range(n)) / n}
    rows = [(z[i], y[i]) for i in range(n)]
    met = set()
    if first is not None:
        z1, z2 = net(first["x"]), net(second["x"])
        b = len(z1)
        squares = sum((z1[i, j] - first["logits"][i, j]) ** 2 for i in range(b) for j in range(c))
        found["logits"] = s.alpha * squares / (b * c)
        y2 = second["y"].tolist()
        found["labels"] = s.beta * sum(cross_entropy(z2[i], y2[i], past) for i in range(b)) / b
        for drawn, out in ((first, z1), (second, z2)):
            for slot, label, logits in zip(drawn["slots"].tolist(), drawn["y"].tolist(), out, strict=True):
                if slot not in met:
                    met.add(slot)
                    rows.append((logits, label))
    if coming:
        if s.future_preparation:
            stream = s.stream_rows or n
            raw, labels = x[:stream], y[:stream]
            if third is not None:
                raw, labels = torch.cat((third["x"], raw)), third["y"].tolist() + labels
            a = s.augmentations
            copies = torch.cat([raw[i : i + 1] for i in range(len(raw)) for _ in range(a)])
            out = net(view(copies))
            total = torch.zeros(())
            for members in coming:
                views = [[out[i * a + j, list(members)] for j in range(a)] for i in range(len(raw))]
                total = total + supervised_contrastive(views, labels, s.tau)
            found["future_preparation"] = s.lam * total / (len(coming) * len(raw))
            if s.dp_weight and third is not None:
                parts = [
                    distance(out[j : len(third["y"]) * a : a, list(members)], third["logits"][:, list(members)])
                    for members in coming
                    for j in range(a)
                ]
                found["distance_preservation"] = s.dp_weight * sum(parts) / len(parts)
        if s.future_constraint:
            gaps = []
            for out, label in rows:
                own = next(members for members in tasks if label in members)
                gaps.append(largest(head(out, future)) + s.margin - largest(head(out, own)))
            found["future_constraint"] = s.eta * violations(gaps)
    if t and s.past_constraint:
        gaps = []
        for i in range(n):
            total = sum(torch.exp(value) for value in head(z[i], past + present))
            p = {label: torch.exp(z[i, label]) / total for label in past + present}
            before = largest([p[label] for label in past]).detach()
            gaps.append(before + s.margin - largest([p[label] for label in present]))
        found["past_constraint"] = s.eta * violations(gaps)
    return found
