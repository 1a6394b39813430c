"""AsCL, asymmetry-sensitive contrastive learning with hierarchical fusion (arXiv 2405.10029).

Pictures and captions carry unequal information. `samples` makes texts that say more, less or the
wrong thing; `fusion` compares regions with words and pictures with texts; `losses` contrasts all
of it; `model` puts them on the backbone; `retrieval` evaluates; `runs` trains and stores rows.
"""
