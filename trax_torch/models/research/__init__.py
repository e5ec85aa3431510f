"""Parts of models that Trax keeps in its research folder."""
