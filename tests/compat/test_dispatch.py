import subprocess
import sys

# Each in a process of its own: what torch has imported stays imported.
INSIDE = """
import sys, torch
from fairseq.modules import SinusoidalPositionalEmbedding
from elseq.compat.contents import MemoryBudget
from elseq.compat.parameters import WithoutRandomNumbers
with MemoryBudget(10**6, "model.pt"), WithoutRandomNumbers():
    torch.nn.Embedding(3, 4)
    torch.nn.Linear(3, 4)
    SinusoidalPositionalEmbedding(4, 0, 10)
print("torch._dynamo" in sys.modules)
"""


def test_modes_do_not_import_the_compiler():
    done = subprocess.run([sys.executable, "-c", INSIDE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
