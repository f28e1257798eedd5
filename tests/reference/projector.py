"""Constants in the tests of the `gnsp-optimizer` crate, from numpy and PyTorch.

Run:       python tests/reference/projector.py > constants.txt
Versions:  made with numpy 2.4.6 and PyTorch 2.15.0, Python 3.11

The layout is that of PyTorch (weights [out, in], gradients multiplied by the projector from the
right). The Rust crate works on Burn's [in, out], so agreement also shows that the transposition is
right.
Inputs are closed formulas: grid(rows, cols, a, b)[i][j] = a * sin(b * (i * cols + j + 1)).
"""

import numpy as np
import torch

torch.set_num_threads(1)


def grid(rows, cols, a, b):
    index = np.arange(1, rows * cols + 1, dtype=np.float64)
    return (a * np.sin(b * index)).reshape(rows, cols)


def show(name, value):
    print(f"{name}: [{', '.join(f'{x:.9}' for x in np.asarray(value).flatten().tolist())}]")


def gram(batches, batch_norm=True, task_norm=True):
    total = 0
    for x in batches:
        g = x.T @ x
        total = total + (g / np.linalg.norm(g) if batch_norm else g)
    return total / np.linalg.norm(total) if task_norm else total


# Accumulation: batches of unequal size, two tasks.
first = gram([grid(4, 3, 1.0, 0.7), grid(2, 3, 30.0, 1.1)])
second = gram([grid(5, 3, 2.0, 2.9)])
show("gram of a task", first)
show("gram without norms", gram([grid(4, 3, 1.0, 0.7), grid(2, 3, 30.0, 1.1)], False, False))
show("history sum", first + second)
two = first + second
show("history renormalize, third task", two / np.linalg.norm(two) + second)

# Projector by SVD, as in the reference implementation.
# A sum of three grids: one alone has rank two.
features = grid(9, 6, 1.0, 0.37) + grid(9, 6, 0.5, 1.9) + grid(9, 6, 0.3, 2.6)
m = gram([features])
_, s, vt = np.linalg.svd(m)
show("singular values", s)
for rho in (0.3, 0.01, 0.001):
    tail = [s[k:].sum() / s.sum() for k in range(len(s) + 1)]
    k = next(k for k in range(len(s) + 1) if tail[k] < rho)
    null = vt[k:].T
    show(f"projector rho={rho} k={k}", null @ null.T)

# Three steps of AdamW on projected gradients, [out, in] = [2, 6].
rho = 0.3
k = next(k for k in range(7) if s[k:].sum() / s.sum() < rho)
p = torch.tensor(vt[k:].T @ vt[k:])
weight = torch.tensor(grid(2, 6, 0.5, 1.3)).requires_grad_()
optimizer = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
for step in range(3):
    weight.grad = torch.tensor(grid(2, 6, 1.0, 0.9 + step)) @ p
    optimizer.step()
show(f"adamw on projected gradients k={k}, weight [out, in]", weight.detach())


# Gradient projection memory (arXiv 2103.09762, eq. 5, 8 and 9), two tasks, 90 % of the energy.
def gpm(tasks, share):
    basis = np.zeros((tasks[0].shape[1], 0))
    ranks = []
    for x in tasks:
        r = x.T
        total = (r**2).sum()
        rest = r - basis @ (basis.T @ r)
        u, s, _ = np.linalg.svd(rest, full_matrices=False)
        explained = [
            (total - (rest**2).sum() + (s[:k] ** 2).sum()) / total for k in range(len(s) + 1)
        ]
        k = next(k for k in range(len(s) + 1) if explained[k] >= share)
        basis = np.hstack([basis, u[:, :k]])
        ranks.append(basis.shape[1])
    return ranks, np.eye(len(basis)) - basis @ basis.T


ranks, p = gpm(
    [grid(9, 6, 1.0, 0.37) + grid(9, 6, 0.5, 1.9), grid(7, 6, 1.0, 0.83) + grid(7, 6, 0.2, 2.6)],
    0.9,
)
show(f"gpm ranks={ranks}, projector after the second task", p)
