"""What holds for every test: shapes in annotations are checked, one thread, no network.

The hook has to be in place before anything imports potstill, and the variable before anything imports transformers.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from jaxtyping import install_import_hook

install_import_hook(["potstill.losses", "potstill.reduce"], "beartype.beartype")
torch.set_num_threads(1)
