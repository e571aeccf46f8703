"""The losses between the outputs of student and teacher, a file each: its name is the loss's, which
a recipe gives a weight in [pretrain.loss]. The files load torch when a loss is computed, because
recipes are read without it. Losses of features and weights are in `pelacli.train.losses`.
"""
