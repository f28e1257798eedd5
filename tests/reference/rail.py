"""RAIL (primal, dual, fusion) and iCaRL's exemplar selection on three small tasks each.

Run:   python tests/reference/rail.py crates/mtil-methods/src/analytic/testdata/rail.json \
           crates/mtil-methods/src/testdata/exemplars.json
Made with: Python 3.11, numpy 2.4.6, scikit-learn 1.9.1 (CPU, one thread). Everything in float64.

rail.json: unit features of three tasks whose classes are numbered across tasks, a given hidden
layer, test features, and zero-shot logits over all classes, three of which are never learned. After
each task: weights of the primal regression (scikit-learn's Ridge on all features so far, checked
here against the recursion R <- R - R F'(I + F R F')^-1 F R, W <- W + R F'(Y - F W) in batches),
dual coefficients (KernelRidge, checked against the plain inverse), scores of the test features, and
fused decisions; after the last task also fused scores.

exemplars.json: unit features of three tasks and the selection of the plain formulas with a budget
of 10, once as in iCaRL's paper and once with the two defects of the published MTIL code (the quota
of a new set is K - K // t; a picked row is deleted from the features but not from the images).
"""

import json
import os
import sys

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

WIDTH, HIDDEN, UNSEEN = 6, 14, 3
TASKS = [(3, 12), (2, 9), (3, 10)]  # classes, images
PRIMAL_LAMBDA, DUAL_LAMBDA, GAMMA, WEIGHT = 0.1, 0.001, 0.1, 0.8


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def rail():
    rng = np.random.default_rng(20240618)
    hidden = rng.uniform(-1, 1, (WIDTH, HIDDEN)) / np.sqrt(WIDTH)
    total = sum(c for c, _ in TASKS) + UNSEEN
    centres = unit(rng.standard_normal((total, WIDTH)))
    texts = unit(centres + 0.35 * rng.standard_normal((total, WIDTH)))
    expand = lambda x: np.maximum(x @ hidden, 0.0)
    draw = lambda labels: unit(centres[labels] + 0.3 * rng.standard_normal((len(labels), WIDTH)))
    tests = draw(np.arange(16) % total)
    # A temperature of 10 keeps the softmax soft; the formula holds for any.
    zero_shot = 10.0 * tests @ texts.T
    p = np.exp(zero_shot - zero_shot.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)

    tasks, x, y, seen = [], np.zeros((0, WIDTH)), np.zeros(0, int), 0
    inverse, weights = np.eye(HIDDEN) / PRIMAL_LAMBDA, np.zeros((HIDDEN, 0))
    for classes, images in TASKS:
        labels = rng.permutation(seen + np.arange(images) % classes)
        features = draw(labels)
        seen += classes
        x, y = np.concatenate([x, features]), np.concatenate([y, labels])
        hot = np.eye(seen)[y]

        primal = (
            Ridge(alpha=PRIMAL_LAMBDA, fit_intercept=False, solver="cholesky")
            .fit(expand(x), hot)
            .coef_.T
        )
        weights = np.concatenate([weights, np.zeros((HIDDEN, classes))], axis=1)
        for start in range(0, images, 5):
            f, target = expand(features[start : start + 5]), np.eye(seen)[labels[start : start + 5]]
            inverse = (
                inverse
                - inverse @ f.T @ np.linalg.pinv(np.eye(len(f)) + f @ inverse @ f.T) @ f @ inverse
            )
            weights = weights + inverse @ f.T @ (target - f @ weights)
        assert np.abs(primal - weights).max() < 1e-11

        machine = KernelRidge(alpha=DUAL_LAMBDA, kernel="rbf", gamma=GAMMA).fit(x, hot)
        kernel = lambda a: np.exp(-GAMMA * ((a[:, None] - x[None]) ** 2).sum(-1))
        plain = np.linalg.inv(kernel(x) + DUAL_LAMBDA * np.eye(len(x))) @ hot
        assert np.abs(plain - machine.dual_coef_).max() < 1e-10 * np.abs(plain).max()

        record = {
            "classes": seen,
            "features": features.ravel().tolist(),
            "labels": labels.tolist(),
            "primal_weights": primal.ravel().tolist(),
            "dual_weights": machine.dual_coef_.ravel().tolist(),
        }
        for name, scores in (("primal", expand(tests) @ primal), ("dual", machine.predict(tests))):
            fused, adapted = p.copy(), p.argmax(axis=1) < seen
            padded = np.pad(scores, ((0, 0), (0, total - seen)))
            fused[adapted] = (1 - WEIGHT) * p[adapted] + WEIGHT * padded[adapted]
            best = np.sort(fused, axis=1)
            assert (best[:, -1] - best[:, -2]).min() > 1e-4, "a decision hangs on rounding"
            record[f"{name}_scores"] = scores.ravel().tolist()
            record[f"{name}_decisions"] = fused.argmax(axis=1).tolist()
            if seen + UNSEEN == total:
                record[f"{name}_fused"] = fused.ravel().tolist()
        record["adapted"] = adapted.tolist()
        assert 0 < sum(record["adapted"]) < len(tests)
        tasks.append(record)

    # The fusion must change decisions, and the two forms must decide differently.
    assert (p.argmax(axis=1) != tasks[-1]["primal_decisions"]).any()
    assert tasks[-1]["primal_decisions"] != tasks[-1]["dual_decisions"]
    return {
        "width": WIDTH,
        "hidden_width": HIDDEN,
        "all_classes": total,
        "lambda_primal": PRIMAL_LAMBDA,
        "lambda_dual": DUAL_LAMBDA,
        "gamma": GAMMA,
        "weight": WEIGHT,
        "hidden": hidden.ravel().tolist(),
        "tests": tests.ravel().tolist(),
        "zero_shot": zero_shot.ravel().tolist(),
        "tasks": tasks,
    }


def herd(features, count, defect):
    """Indices in the order of selection.

    With the defect, these are positions in the list of remaining rows.
    """
    images, mean, total = list(range(len(features))), features.mean(axis=0), 0.0
    left, chosen = features.copy(), []
    for k in range(min(count, len(features))):
        distance = ((mean - (total + left) / (k + 1)) ** 2).sum(axis=1)
        two = np.sort(distance)[:2]
        assert len(two) < 2 or two[1] - two[0] > 1e-12, "a pick hangs on rounding"
        at = int(distance.argmin())
        total = total + left[at]
        left = np.delete(left, at, axis=0)
        chosen.append(images[at])
        if not defect:
            del images[at]
    return chosen


def exemplars():
    rng = np.random.default_rng(2017)
    budget, tasks = 10, []
    for rows in (14, 12, 17):
        features = unit(rng.standard_normal((rows, 4)) + [1, 0, 0, 0]).astype(np.float32)
        tasks.append({"rows": rows, "features": [float(x) for x in features.ravel()]})
    out = {"columns": 4, "budget": budget, "tasks": tasks}
    for name, defect in (("fixed", False), ("reference", True)):
        stages, sets = [], []
        for t, task in enumerate(tasks, start=1):
            features = np.array(task["features"]).reshape(task["rows"], 4)
            if t == 1:
                new = (
                    list(range(task["rows"]))[:budget] if defect else herd(features, budget, False)
                )
            else:
                sets = [s[: budget // t] for s in sets]
                new = herd(features, budget - budget // t if defect else budget // t, defect)
            sets.append(new)
            stages.append([list(s) for s in sets])
        out[name] = stages
    assert sum(map(len, out["reference"][2])) > budget
    assert any(len(set(s)) < len(s) for s in out["reference"][2]), "no image is taken twice"
    return out


if __name__ == "__main__":
    for path, content in zip(sys.argv[1:3], (rail(), exemplars()), strict=True):
        with open(path, "w") as file:
            file.write(json.dumps(content, separators=(",", ":")) + "\n")
