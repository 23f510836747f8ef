"""The training of March 2024 in PyTorch, written from its formulas: what the C code is compared with.

Layout is torch's: encoder.weight [F, d], decoder.weight [d, F]. Everything works in f32 and f64.
"""
import torch
from torch import nn

EPS = 1e-8


class AutoEncoder(nn.Module):
    """f = ReLU(W_e (x - b) + b_e), x_hat = W_d f + b. Parameters in the order of Adam's state: bias, encoder.weight,
    encoder.bias, decoder.weight."""

    def __init__(self, activation_dim, dict_size):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(activation_dim))
        self.encoder = nn.Linear(activation_dim, dict_size)
        self.decoder = nn.Linear(dict_size, activation_dim, bias=False)
        with torch.no_grad():
            atoms = torch.randn(activation_dim, dict_size)
            self.decoder.weight.copy_(atoms / atoms.norm(dim=0))

    def pre(self, x):
        return self.encoder(x - self.bias)

    def encode(self, x):
        return torch.relu(self.pre(x))

    def decode(self, f):
        return self.decoder(f) + self.bias

    def ghost(self, x, mask):
        """W_d (exp(f_pre) * mask): no bias."""
        return self.decoder(torch.exp(self.pre(x)) * mask)


class ConstrainedAdam:
    """Adam; the gradient of a unit-norm matrix loses its part along each column, and columns are scaled back."""

    def __init__(self, ae, lr):
        self.columns = ae.decoder.weight
        self.adam = torch.optim.Adam(ae.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8)

    def step(self, lr):
        w = self.columns
        with torch.no_grad():
            unit = w / w.norm(dim=0)
            w.grad -= (w.grad * unit).sum(dim=0) * unit
            self.adam.param_groups[0]["lr"] = lr
            self.adam.step()
            w /= w.norm(dim=0)

    def moments(self, parameter):
        state = self.adam.state[parameter]
        return state["exp_avg"], state["exp_avg_sq"]


def entropy(f):
    """Mean over rows of -sum q log(q + eps), q = f / (sum f + eps); a row without features has 0."""
    total = f.sum(dim=-1, keepdim=True)
    q = f / (total + EPS)
    rows = -(q * torch.log(q + EPS)).sum(dim=-1)
    return torch.where(total.squeeze(-1) > 0, rows, torch.zeros_like(rows)).mean()


def sae_loss(ae, x, y, penalty, loss="norm", sparsity="l1", counter=None, ghost_threshold=None):
    """Terms of the loss as a dict; `counter` [F] is brought up to date after the ghost mask was taken from it."""
    f = ae.encode(x)
    residual = y - ae.decode(f)
    length = torch.linalg.norm(residual, dim=-1)
    mse = length.mean() if loss == "norm" else (residual**2).sum(dim=-1).mean()
    sparse = f.abs().sum(dim=-1).mean() if sparsity == "l1" else entropy(f)
    total, ghost = mse + penalty * sparse, None
    if ghost_threshold is not None and bool((counter > ghost_threshold).any()):
        shadow = ae.ghost(x, counter > ghost_threshold)
        scale = length.detach() / (2 * torch.linalg.norm(shadow, dim=-1).detach() + EPS)
        ghost = torch.linalg.norm(residual.detach() - shadow * scale[:, None], dim=-1).mean()
        total = total + ghost * (mse.detach() / (ghost.detach() + EPS))
    if counter is not None:
        counter.copy_(torch.where((f == 0).all(dim=0), counter + 1, torch.zeros_like(counter)))
    return {"loss": total, "mse": mse, "sparsity": sparse, "ghost": ghost,
            "l0": (f != 0).sum(dim=-1).to(total.dtype).mean()}


def rate(step, warmup, resample):
    """Factor of the learning rate: a ramp from 0, again after each resampling."""
    since = step % resample if resample else step
    return min(since / warmup, 1.0) if warmup else 1.0


def forget_dead(ae, optimiser, dead):
    """All that the resampling of March 2024 changed: it wrote its new weights into a copy, so that only the moments of
    the dead encoder rows and biases are set to zero. The atoms' moments and Adam's count of steps stay."""
    for parameter in (ae.encoder.weight, ae.encoder.bias):
        for moment in optimiser.moments(parameter):
            moment[dead] = 0.0


def train(ae, batches, lr, penalty, warmup=0, resample=None, ghost_threshold=None, log=None, loss="norm",
          sparsity="l1", after=None):
    """One step a batch (x, y). Each yields its terms; on a logged step those of the log's own second pass, which counts
    the batch once more. after(step, ae, optimiser, counter) runs at the end of each step. Returns the list of terms."""
    optimiser = ConstrainedAdam(ae, lr)
    counter = torch.zeros(ae.encoder.weight.shape[0], dtype=torch.int64)
    kept = []
    for step, (x, y) in enumerate(batches):
        arguments = (ae, x, y, penalty, loss, sparsity, counter, ghost_threshold)
        ae.zero_grad()
        terms = sae_loss(*arguments)
        terms["loss"].backward()
        factor = lr * rate(step, warmup, resample)
        optimiser.step(factor)
        if resample and step % resample == 0:
            forget_dead(ae, optimiser, counter > resample / 2)
        if log and step % log == 0:
            with torch.no_grad():
                terms = sae_loss(*arguments)
        kept.append({k: 0.0 if v is None else float(v.detach()) for k, v in terms.items()} | {"lr": factor})
        if after:
            after(step, ae, optimiser, counter)
    return kept


def evaluate(ae, x, y, sparsity="l1"):
    """Every figure of an evaluation, over the rows of one batch."""
    with torch.no_grad():
        f = ae.encode(x)
        x_hat = ae.decode(f)
        length = torch.linalg.norm(y - x_hat, dim=-1)
        lost, had = torch.var(y - x_hat, dim=0), torch.var(y, dim=0)
        norm, norm_hat = torch.linalg.norm(y, dim=-1), torch.linalg.norm(x_hat, dim=-1)
        inner = (y * x_hat).sum(dim=-1)
        fired = (f != 0).sum(dim=0)
        figures = {
            "mse_loss": (length**2).mean(),
            "mse_compat": length.mean() ** 2,
            "l2_loss": length.mean(),
            "l1": f.abs().sum(dim=-1).mean(),
            "entropy": entropy(f),
            "variance_explained": 1 - lost.sum() / had.sum(),
            "variance_explained_per_dim": (1 - lost / had).mean(),
            "l0": (f != 0).to(x.dtype).sum(dim=-1).mean(),
            "percent_alive": (fired > 0).to(x.dtype).mean(),
            "cosine": (inner / (norm * norm_hat)).mean(),
            "l2_ratio": (norm_hat / norm).mean(),
            "relative_reconstruction_bias": (norm_hat**2).mean() / inner.mean(),
            "dead": (fired == 0).sum(),
            "dense": (fired > 0.1 * x.shape[0]).sum(),
        }
        return {name: float(value) for name, value in figures.items()} | {"fired": fired}
