"""A data set that draws; here, since workers that are spawned find no test module to import."""

import random

import numpy as np
import torch
from torch.utils.data import Dataset


class Rows(Dataset):
    """Rows of random numbers; of plain ones for `draws=False`."""

    def __init__(self, draws=True):
        self.draws = draws

    def __len__(self):
        return 40

    def __getitem__(self, i):
        if not self.draws:
            return torch.zeros(3)
        return torch.tensor([torch.rand(()), np.random.randn(), random.gauss(0, 1)])


def seed_numpy(worker):
    np.random.seed(worker)
