"""Expected values of the evaluation measures, from scikit-learn and NumPy in double precision.

Writes:    measures.json (read by the tests in crates/mtil-eval/src/measures)
Run:       python tests/reference/measures.py crates/mtil-eval/src/measures/testdata/measures.json
Versions:  made with scikit-learn 1.9.1, NumPy 2.4.6, Python 3.11

Matrices are stored as whole numbers, to be divided by 64, so that both sides read the same values.
"""

import json
import os
import sys

# Set before NumPy is loaded: one thread gives the same bytes again.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    top_k_accuracy_score,
)

rng = np.random.default_rng(20240607)


def quantised(values):
    return np.round(values * 64)


def stored(whole):
    rows, columns = whole.shape
    return {"rows": rows, "columns": columns, "values": [int(v) for v in whole.ravel()]}


def closest(values):
    """The smallest difference of two values in each row."""
    return np.diff(np.sort(values, axis=1), axis=1).min(axis=1)


# Classification: logits that favour the label, with classes of different sizes.
def classification():
    classes, images = 6, 240
    labels = rng.choice(classes, size=images, p=[0.3, 0.25, 0.2, 0.12, 0.08, 0.05])
    lean = 1.2 * np.eye(classes)[labels]
    whole = np.zeros((images, classes))
    # Redraws rows with equal logits, so that no result depends on a tie.
    while (tied := closest(whole) == 0).any():
        whole[tied] = quantised(rng.normal(size=(images, classes)) + lean)[tied]
    logits = whole / 64
    predicted = logits.argmax(axis=1)
    cases = []
    for scale, bins in ((1.0, 15), (3.0, 15), (0.25, 15), (2.0, 10), (100.0, 15)):
        p = softmax(scale * logits, axis=1)
        confidence, correct = p.max(axis=1), (predicted == labels).astype(float)
        edges = np.linspace(0, 1, bins + 1)
        ece, largest, counts = 0.0, 0.0, []
        for low, high in zip(edges[:-1], edges[1:]):
            inside = (confidence > low) & (confidence <= high)
            counts.append(int(inside.sum()))
            if counts[-1]:
                off = abs(correct[inside].mean() - confidence[inside].mean())
                ece += off * inside.mean()
                largest = max(largest, off)
        order = np.argsort(confidence, kind="stable")
        adaptive = 0.0
        for m in range(bins):
            inside = order[m * images // bins : (m + 1) * images // bins]
            adaptive += (
                abs(correct[inside].mean() - confidence[inside].mean()) * len(inside) / images
            )
        # log_loss clips probabilities, which matters at the largest scale; this logarithm is exact.
        nll = -log_softmax(scale * logits, axis=1)[np.arange(images), labels].mean()
        if scale < 10:
            assert abs(nll - log_loss(labels, p, labels=range(classes))) < 1e-12
        brier = brier_score_loss(labels, p, labels=list(range(classes)), scale_by_half=False)
        cases.append(
            {
                "scale": scale,
                "bins": bins,
                "ece": ece,
                "mce": largest,
                "adaptive_ece": adaptive,
                "nll": nll,
                "brier": brier,
                "counts": counts,
            }
        )
    return {
        "logits": stored(whole),
        "labels": labels.tolist(),
        "predicted": predicted.tolist(),
        "confusion": confusion_matrix(labels, predicted, labels=range(classes)).tolist(),
        "accuracy": 100 * accuracy_score(labels, predicted),
        "balanced_accuracy": 100 * balanced_accuracy_score(labels, predicted),
        "top_k": [
            100 * top_k_accuracy_score(labels, logits, k=k, labels=range(classes))
            for k in range(1, classes)
        ],
        "calibration": cases,
    }


def draw_pairs(images, columns):
    x = rng.normal(size=(images, columns)) + 1.5 * rng.normal(size=columns)
    image_of = rng.permutation(np.repeat(np.arange(images), rng.integers(1, 5, size=images)))
    noise = 1.1 * rng.normal(size=(len(image_of), columns))
    whole_x, whole_y = quantised(x), quantised(x[image_of] + noise + 1.5 * rng.normal(size=columns))
    x = whole_x / np.linalg.norm(whole_x, axis=1, keepdims=True)
    y = whole_y / np.linalg.norm(whole_y, axis=1, keepdims=True)
    return image_of, whole_x, whole_y, x, y, x @ y.T


# Images with one to four captions; some captions equal one of another image.
def pairs():
    images, columns, scale = 36, 16, 100.0
    # Redrawn until no rank depends on the rounding of float32.
    while True:
        drawn = draw_pairs(images, columns)
        if min(closest(drawn[-1]).min(), closest(drawn[-1].T).min()) > 5e-7:
            break
    image_of, whole_x, whole_y, x, y, s = drawn
    texts = len(image_of)
    captions = [f"caption {j}" for j in range(texts)]
    for j in rng.choice(texts, size=texts // 3, replace=False):
        captions[j] = f"common caption {rng.integers(6)}"
    own = image_of[None, :] == np.arange(images)[:, None]

    def squared(a, b):
        return ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)

    def upper(a):
        return squared(a, a)[np.triu_indices(len(a), 1)]

    def uniformity(distances):
        return float(np.log(np.exp(-2 * distances).mean()))

    def summary(scores, right):
        """Recall at K: the share of queries with a correct answer among the best K."""
        order = np.argsort(-scores, axis=1, kind="stable")
        hits = np.take_along_axis(right, order, axis=1)
        recall = [100 * float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 10)]
        rank = 1 + hits.argmax(axis=1)
        return {"recall": recall, "median": float(np.median(rank)), "mean": float(rank.mean())}

    says = np.array(captions)
    same = np.array([[says[j] in says[own[i]] for j in range(texts)] for i in range(images)])
    gap = x.mean(axis=0) - y.mean(axis=0)
    return {
        "images": stored(whole_x),
        "texts": stored(whole_y),
        "image_of": image_of.tolist(),
        "captions": captions,
        "scale": scale,
        "gap_vector": gap.tolist(),
        "gap": float(np.linalg.norm(gap)),
        "alignment": float(((x[image_of] - y) ** 2).sum(axis=1).mean()),
        "image_uniformity": uniformity(upper(x)),
        "text_uniformity": uniformity(upper(y)),
        "cross_uniformity": uniformity(squared(x, y)[~own]),
        "positive": float(scale * s[own].mean()),
        "negative": float(scale * s[~own].mean()),
        "image_to_text": summary(s, own),
        "text_to_image": summary(s.T, own.T),
        "grouped_image_to_text": summary(s, same),
        "grouped_text_to_image": summary(s.T, same.T),
    }


# Overlapping classes of different sizes.
def probe():
    classes, columns = 4, 10
    means = 0.9 * rng.normal(size=(classes, columns))

    def draw(images):
        labels = np.concatenate(
            [np.arange(classes), rng.choice(classes, size=images - classes, p=[0.4, 0.3, 0.2, 0.1])]
        )
        return quantised(means[labels] + rng.normal(size=(images, columns))), labels

    (whole_train, labels), (whole_test, test_labels) = draw(150), draw(90)
    train, test = whole_train / 64, whole_test / 64
    fits = []
    for c in (0.01, 0.316, 10.0):
        model = LogisticRegression(C=c, tol=1e-10, max_iter=20000).fit(train, labels)
        loss = log_loss(labels, model.predict_proba(train))
        penalty = (model.coef_**2).sum() / (2 * c * len(labels))
        logits = np.sort(model.decision_function(test), axis=1)
        assert (logits[:, -1] - logits[:, -2]).min() > 1e-3, "a prediction hangs on rounding"
        fits.append(
            {
                "c": c,
                "objective": float(loss + penalty),
                "weights": model.coef_.ravel().tolist(),
                "bias": model.intercept_.tolist(),
                "train_accuracy": 100 * model.score(train, labels),
                "test_accuracy": 100 * model.score(test, test_labels),
                "test_predictions": model.predict(test).tolist(),
            }
        )
    return {
        "classes": classes,
        "train": stored(whole_train),
        "train_labels": labels.tolist(),
        "test": stored(whole_test),
        "test_labels": test_labels.tolist(),
        "fits": fits,
    }


result = {"classification": classification(), "pairs": pairs(), "probe": probe()}
with open(sys.argv[1], "w") as file:
    json.dump(result, file, separators=(",", ":"))
    file.write("\n")
