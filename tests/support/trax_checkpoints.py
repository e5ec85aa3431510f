"""Where checkpoints lie that Trax itself wrote."""

import figures
import pytest

LM = figures.FOLDER / "single" / "trax_checkpoint" / "model.pkl.gz"
ADAM = figures.FOLDER / "trax_checkpoints" / "adam" / "model.pkl.gz"
BN = figures.FOLDER / "trax_checkpoints" / "bn" / "model.pkl.gz"
OLDER = figures.FOLDER.parents[1] / "../shared/trax_checkpoints/transformerlm_copy_2020.pkl.gz"
needs_older = pytest.mark.skipif(not OLDER.exists(), reason="Trax's own test file is not kept here")
