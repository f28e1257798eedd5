"""Constants in the tests of the `clip-losses` crate, from PyTorch's own loss functions.

Run:       python tests/reference/losses.py > constants.txt
Versions:  made with PyTorch 2.15 (float32 inputs, float64 arithmetic), Python 3.11

The inputs are closed formulas (no random numbers), so that the Rust tests rebuild them exactly:
    grid(rows, cols, a, b)[i][j] = a * sin(b * (i * cols + j + 1))
"""

import torch
import torch.nn.functional as F

torch.set_num_threads(1)


def grid(rows, cols, a, b):
    index = torch.arange(1, rows * cols + 1, dtype=torch.float64)
    return (a * torch.sin(b * index)).reshape(rows, cols)


def show(name, value):
    flat = [f"{x:.9}" for x in value.detach().flatten().tolist()]
    print(f"{name}: [{', '.join(flat)}]")


def with_grad(name, inputs, loss):
    show(name, loss)
    for label, tensor in inputs.items():
        (gradient,) = torch.autograd.grad(loss, tensor, retain_graph=True)
        show(f"{name} d/d{label}", gradient)


# Classification: F.cross_entropy with class-index and with probability targets.
logits = grid(3, 4, 5.0, 1.7).requires_grad_()
labels = torch.tensor([2, 0, 3])
for smoothing in (0.0, 0.2):
    with_grad(
        f"hard eps={smoothing}",
        {"logits": logits},
        F.cross_entropy(logits, labels, label_smoothing=smoothing),
    )
probabilities = torch.tensor(
    [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64
)
for smoothing in (0.0, 0.2):
    with_grad(
        f"soft eps={smoothing}",
        {"logits": logits},
        F.cross_entropy(logits, probabilities, label_smoothing=smoothing),
    )

# Distillation: cross-entropy against the softened teacher, times T^2.
teacher = grid(3, 3, 6.0, 2.3)
student = grid(3, 3, 4.0, 0.9).requires_grad_()


def distil(a, b, t):
    return F.cross_entropy(b / t, torch.softmax(a / t, dim=1)) * t * t


with_grad("distil T=2", {"student": student}, distil(teacher, student, 2.0))
with_grad(
    "contrastive distil T=2",
    {"student": student},
    distil(teacher, student, 2.0) + distil(teacher.T, student.T, 2.0),
)
kl = (
    F.kl_div(
        torch.log_softmax(student / 2, 1), torch.softmax(teacher / 2, 1), reduction="batchmean"
    )
    * 4
)
entropy = F.cross_entropy(torch.log_softmax(teacher / 2, 1), torch.softmax(teacher / 2, 1)) * 4
show("kl + entropy of the teacher", kl + entropy)

# Modality alignment: labels [7, 3, 7], both directions with the same targets.
targets = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]], dtype=torch.float64)
for smoothing in (0.0, 0.2):
    with_grad(
        f"alignment eps={smoothing}",
        {"student": student},
        F.cross_entropy(student, targets, label_smoothing=smoothing)
        + F.cross_entropy(student.T, targets, label_smoothing=smoothing),
    )

# Contrastive: mean of the two directions.
diagonal = torch.arange(3)
with_grad(
    "contrastive",
    {"logits": student},
    (F.cross_entropy(student, diagonal) + F.cross_entropy(student.T, diagonal)) / 2,
)
