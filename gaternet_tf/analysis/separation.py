"""Whether images of a class have similar gates: a picture by t-SNE, and numbers beside it."""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from gaternet_tf.analysis.record import GateRecord

IMAGES = 10_000
"""Of more images, a sample is taken."""
NUMBERS = 50_000_000
"""Most images x input-dependent gates in memory (200 MB); above it the sample is smaller."""
COMPONENTS = 400
"""Dimensions that PCA leaves for t-SNE, as in the paper."""
SILHOUETTE_IMAGES = 5_000
NEIGHBOURS = 10
SEED = 0.0015
"""Distance of two images with the same gates, as a share of the picture's longer side."""


def separate(
    record: GateRecord, dependent: np.ndarray, perplexity: float = 30.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Measures how well the gate vectors of at most 10,000 images separate their classes.

    The distinct vectors of input-dependent gates are reduced by PCA to at most 400 dimensions and
    by t-SNE to 2. (Distinct, because t-SNE ties a point to some 90 others, and would tear apart the
    copies of a vector that more images share.) On the vectors themselves, with the Hamming
    distance: the share of images whose class is the most frequent one among their 10 nearest other
    images, and the mean silhouette coefficient; and both again with shuffled labels, for
    comparison with chance.

    Args:
      record: the gates.
      dependent: indices of the input-dependent gates.
      perplexity: of t-SNE, about the number of neighbours that each image keeps.
      seed: of the sample, PCA, t-SNE and the shuffling.

    Returns:
      sample: int64 [n], the images in the sample, ascending.
      points: float32 [n, 2], their place in the picture; [0, 2] if there is none. Images with the
        same gates lie in a small disc around the place of their gate vector.
      document: the numbers, JSON-ready. Numbers that do not exist are `{"absent": reason}`.
    """
    most = min(IMAGES, max(2, NUMBERS // max(1, len(dependent))))
    sample = stratified_sample(record.labels, most, seed)
    document: dict = {
        "images": len(sample),
        "input_dependent_gates": len(dependent),
        "perplexity": perplexity,
        "seed": seed,
    }
    points = np.zeros((0, 2), np.float32)
    if not len(dependent):
        reason = {"absent": "no gate depends on the input, so all images have the same gates"}
        document |= dict.fromkeys(("t_sne", "neighbours", "silhouette"), reason)
        return sample, points, document
    vectors = record.rows(sample)[:, dependent].astype(np.float32, order="C")
    labels = record.labels[sample]
    document["neighbours"] = _neighbours(vectors, labels, seed)
    document["silhouette"] = _silhouette(vectors, labels, seed)
    distinct, which = np.unique(vectors, axis=0, return_inverse=True)
    document["distinct_gate_vectors"] = len(distinct)
    least = max(2, perplexity)
    if len(distinct) > least:
        places, document["t_sne"] = _embed(distinct, perplexity, seed)
        points = _spread_out(places, which)
    else:
        document["t_sne"] = {
            "absent": f"t-SNE with perplexity {perplexity:g} needs more than {least:g} different "
            f"gate vectors, and there are {len(distinct)}; choose a lower --perplexity or more "
            "images"
        }
    return sample, points, document


def stratified_sample(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Returns the indices of at most `most` images, ascending, with the same share of each class.

    Shares are rounded down, and the classes with the largest remainders get one image more; within
    a class the choice is random.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * most / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: most - quota.sum()]] += 1
    generator = np.random.default_rng(seed)
    chosen = [
        generator.choice(np.flatnonzero(labels == number), size, replace=False)
        for number, size in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _spread_out(places, which):
    """Returns a point for each image, float32 [n, 2], near the place of its gate vector.

    Images at one place lie around it like the seeds of a sunflower: the more, the larger the disc.
    """
    rank = np.zeros(len(which), np.int64)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], which[order])
    rank[order] = np.arange(len(which)) - starts
    angle = rank * np.pi * (3 - np.sqrt(5))
    offsets = np.sqrt(rank)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (places[which] + SEED * np.ptp(places, axis=0).max() * offsets).astype(np.float32)


def _embed(vectors, perplexity, seed):
    components = min(COMPONENTS, *vectors.shape)
    pca = PCA(components, random_state=seed)
    reduced = pca.fit_transform(vectors)
    t_sne = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=-1)
    points = t_sne.fit_transform(reduced).astype(np.float32)
    return points, {
        "pca_components": components,
        "pca_explained_variance": float(min(1.0, pca.explained_variance_ratio_.sum())),
        "kl_divergence": float(t_sne.kl_divergence_),
    }


def _neighbours(vectors, labels, seed):
    if len(vectors) <= NEIGHBOURS:
        return {
            "absent": f"{NEIGHBOURS} nearest other images need more than {NEIGHBOURS} images, and "
            f"there are {len(vectors)}"
        }
    # Without arguments, kneighbors leaves each image out of its own neighbours. On vectors of 0 and
    # 1 the Euclidean order is Hamming's, and much faster.
    _, near = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(vectors).kneighbors()
    shuffled = np.random.default_rng(seed).permutation(labels)
    return {
        "k": NEIGHBOURS,
        "accuracy": _majority_accuracy(near, labels),
        "accuracy_shuffled": _majority_accuracy(near, shuffled),
    }


def _majority_accuracy(near, labels):
    """Returns the share of images whose class is the most frequent among their neighbours."""
    # Of equally frequent classes, the lowest number counts.
    votes = np.zeros((len(labels), labels.max() + 1), np.int32)
    np.add.at(votes, (np.arange(len(labels))[:, None], labels[near]), 1)
    return float(np.mean(votes.argmax(axis=1) == labels))


def _silhouette(vectors, labels, seed):
    chosen = stratified_sample(labels, SILHOUETTE_IMAGES, seed)
    vectors, labels = vectors[chosen], labels[chosen]
    # After choosing, so that there are as many classes.
    shuffled = np.random.default_rng(seed).permutation(labels)
    classes = len(np.unique(labels))
    if not 2 <= classes < len(labels):
        return {
            "absent": f"a silhouette needs at least 2 classes and fewer than images; there are "
            f"{classes} classes and {len(labels)} images"
        }
    # Squared Euclidean distance of vectors of 0 and 1 is Hamming's, times their length.
    return {
        "images": len(labels),
        "mean": float(silhouette_score(vectors, labels, metric="sqeuclidean")),
        "mean_shuffled": float(silhouette_score(vectors, shuffled, metric="sqeuclidean")),
    }
