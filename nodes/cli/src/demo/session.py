# The session of `callboard demo`, in the percent format: each cell begins with `# %% name`.
# %% imports
import numpy as np
import sklearn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

print(f"scikit-learn {sklearn.__version__}, numpy {np.__version__}")
# %% data
digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    digits.data / 16, digits.target, test_size=0.25, random_state=7
)
print(f"{len(digits.images)} handwritten digits of 8×8 pixels; {len(x_train)} to learn from")
# %% model
network = MLPClassifier(hidden_layer_sizes=(48,), learning_rate_init=0.001, random_state=7)
scores = []


def train(epochs):
    """Passes over the training set; the share of unseen digits that is then read correctly."""
    for _ in range(epochs):
        network.partial_fit(x_train, y_train, classes=np.arange(10))
        scores.append(network.score(x_test, y_test))
    return f"epoch {len(scores)}: {scores[-1]:.1%} of the unseen digits read correctly"


def fingerprint():
    """A checksum of every weight of the network and of every score so far."""
    import hashlib

    digest = hashlib.sha256(repr(scores).encode())
    for layer in network.coefs_ + network.intercepts_:
        digest.update(layer.tobytes())
    return digest.hexdigest()


print("a neural network, 64 → 48 → 10")
# %% train-1
print(train(1))
# %% train-2
print(train(4))
# %% train-3
print(train(15))
# %% plot
%matplotlib inline
import matplotlib.pyplot as plt
from sklearn.metrics import ConfusionMatrixDisplay

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
left.plot(range(1, len(scores) + 1), scores, marker=".")
left.set(xlabel="epoch", ylabel="accuracy on unseen digits", title="Learning curve", ylim=(0, 1))
ConfusionMatrixDisplay.from_estimator(network, x_test, y_test, ax=right, colorbar=False)
right.set_title("What it takes for what")
figure.tight_layout()
plt.show()
# %% use
print(f"the network reads {network.score(x_test, y_test):.1%} of the unseen digits")
# %% doomed
for _ in range(400):
    line = train(5)
    print(line, flush=True)
doomed = "this cell ran to its end"
# %% long
for _ in range(10):
    line = train(5)
    print(line, flush=True)
# %% fingerprint
print(fingerprint())
