"""Exact t-SNE (van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008), for up to 2,000 points."""

import numpy as np

EARLY = 250  # iterations with exaggerated similarities and the low momentum
EXAGGERATION = 12.0
MOMENTUM = (0.5, 0.8)  # in the early iterations, afterwards
LEAST_GAIN = 0.01
TINY = 1e-12


def tsne(points, perplexity=30.0, iterations=750, seed=0):
    """Positions in the plane whose neighbourhoods resemble those of the points.

    Args:
        points: (N, D) array, N >= 4.  perplexity: effective number of neighbours, lowered to (N - 1) / 3 where it is
            more.  seed: of the small noise on the first positions, which are the two principal components.

    Returns:
        (N, 2) float64 positions, and the Kullback-Leibler divergence (equation 2) after every iteration.
    """
    points = np.asarray(points, dtype=np.float64)
    count = len(points)
    target = affinities(points, min(perplexity, (count - 1) / 3))
    position = first_positions(points, seed)
    velocity, gains = np.zeros_like(position), np.ones_like(position)
    rate = max(count / EXAGGERATION / 4, 50.0)
    divergences = []
    for iteration in range(iterations):
        early = iteration < min(EARLY, iterations // 3)
        gradient, divergence = descend(target, position, EXAGGERATION if early else 1.0)
        gains = np.where(np.sign(gradient) == np.sign(velocity), gains * 0.8, gains + 0.2).clip(LEAST_GAIN)
        velocity = MOMENTUM[not early] * velocity - rate * gains * gradient
        position = position + velocity - (position + velocity).mean(axis=0)
        divergences.append(divergence)
    return position, np.array(divergences)


def affinities(points, perplexity):
    """(N, N) joint probabilities: Gaussian neighbourhoods of the given perplexity, made symmetric (section 3.1)."""
    conditional = neighbourhoods(squared_distances(points), perplexity)
    return np.maximum((conditional + conditional.T) / (2 * len(points)), TINY)


def neighbourhoods(distances, perplexity, steps=64):
    """(N, N) rows p(j | i), each with the entropy log(perplexity), by bisection on the Gaussians' precisions.

    Args:
        distances: (N, N) squared distances.
    """
    count = len(distances)
    off = distances + np.diag(np.full(count, np.inf))  # no point is its own neighbour
    off -= off.min(axis=1, keepdims=True)  # cancels in the quotient, and keeps exp from vanishing
    low, high = np.zeros(count), np.full(count, np.inf)
    precision = 1 / np.maximum(np.median(distances, axis=1), TINY)
    for _ in range(steps):
        p = np.exp(-off * precision[:, None])
        p /= p.sum(axis=1, keepdims=True)
        entropy = -(p * np.log(np.maximum(p, TINY))).sum(axis=1)
        broad = entropy > np.log(perplexity)
        low, high = np.where(broad, precision, low), np.where(broad, high, precision)
        precision = np.where(np.isinf(high), 2 * precision, (low + np.minimum(high, 1e300)) / 2)
    return p


def squared_distances(points):
    """(N, N) squared Euclidean distances, 0 on the diagonal."""
    square = (points**2).sum(axis=1)
    distances = np.maximum(square[:, None] + square[None] - 2 * points @ points.T, 0)
    np.fill_diagonal(distances, 0)
    return distances


def first_positions(points, seed):
    """(N, 2) principal components, scaled to a spread of 1e-4, with noise for points that coincide."""
    centred = points - points.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    components = np.zeros((len(points), 2))
    components[:, : min(2, left.shape[1])] = (left * scale)[:, :2]
    noise = np.random.default_rng(seed).normal(size=components.shape)
    return 1e-4 * components / max(components[:, 0].std(), TINY) + 1e-6 * noise


def descend(target, position, exaggeration):
    """Gradient (equation 5) and divergence KL(P || Q) (equation 2) of positions; only the gradient is exaggerated."""
    student = 1 / (1 + squared_distances(position))
    np.fill_diagonal(student, 0)
    q = np.maximum(student / student.sum(), TINY)
    weight = (exaggeration * target - q) * student
    gradient = 4 * (weight.sum(axis=1)[:, None] * position - weight @ position)
    return gradient, float((target * np.log(target / q)).sum())
